// A single-precision matrix product made of the CPU kernels' own tiles, with packed operands: what
// these tiles reach when nothing else is in the way.
#if defined(MDN_BENCH_SGEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MDN_BENCH_SGEMM_INL_H_
#undef MDN_BENCH_SGEMM_INL_H_
#else
#define MDN_BENCH_SGEMM_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "mdn/kernels/cpu/micro_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {

/// Rows [begin, end) of c = a b, all n x n and row major with n a multiple of 16. `packed_b` is b
/// as panels [n / 16][n][16]. Blocks of kDepth keep a panel's part in the first-level cache, and
/// the rows' part of a in the second.
inline void sgemm_rows(int64_t n, int64_t begin, int64_t end, const float* a, const float* packed_b,
                       float* c) {
  constexpr int64_t kDepth = 256;
  constexpr int64_t kRows = 96;
  for (int64_t first_row = begin; first_row < end; first_row += kRows) {
    const int64_t rows_here = std::min(kRows, end - first_row);
    for (int64_t depth = 0; depth < n; depth += kDepth) {
      const int64_t depth_here = std::min(kDepth, n - depth);
      for (int64_t column = 0; column < n; column += kPanelColumns) {
        const float* b = packed_b + column * n + depth * kPanelColumns;
        for_tiles(rows_here, [&](auto rows, int64_t first) HWY_ATTR {
          const int64_t row = first_row + first;
          Tile<rows()> tile;
          if (depth == 0) {
            clear(tile);
          } else {
            load(tile, c + row * n + column, n);
          }
          accumulate<Left::kRowMajor>(tile, a + row * n + depth, n, b, kPanelColumns, depth_here);
          store(tile, c + row * n + column, n);
        });
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle
