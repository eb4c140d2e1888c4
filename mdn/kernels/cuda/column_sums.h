// Sums over rows, in one order whatever the device does: the second half of every reduction over
// tokens, whose first half leaves one row of partial sums a block.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace mdn::kernels::cuda {

/// sums[c] = sum over rows of partials [rows, columns]; float32.
void column_sums(const float* partials, int64_t rows, int64_t columns, float* sums,
                 cudaStream_t stream);

}  // namespace mdn::kernels::cuda
