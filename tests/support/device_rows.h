// Large device memory made of equal rows, for tests of sizes that no reference can compute.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdn::test {

/// Copies the first `row_bytes` (a multiple of 4) over the `rows - 1` rows behind them.
void repeat_row(void* memory, size_t row_bytes, int64_t rows);

/// How many of the 4-byte words of rows 1 .. rows - 1 differ from those of row 0.
int64_t count_different_words(const void* memory, size_t row_bytes, int64_t rows);

}  // namespace mdn::test
