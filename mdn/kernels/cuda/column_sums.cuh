// What a block of column_sums does, for kernels that sum something else besides.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda {

inline constexpr int kSumColumns = 32;  // of a block
inline constexpr int kSumLanes = 16;    // rows added side by side
inline constexpr int kSumThreads = kSumColumns * kSumLanes;

/// sums[c] = sum over rows of partials [rows, columns] for the `block`-th kSumColumns columns, by a
/// block of kSumThreads.
__device__ inline void sum_columns(const float* partials, int64_t rows, int64_t columns,
                                   int64_t block, float* sums) {
  __shared__ float shared[kSumLanes][kSumColumns];
  const int lane = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = block * kSumColumns + static_cast<int>(threadIdx.x) % kSumColumns;
  float sum = 0;
  if (column < columns) {
    for (int64_t row = lane; row < rows; row += kSumLanes) {
      sum += partials[row * columns + column];
    }
  }
  shared[lane][threadIdx.x % kSumColumns] = sum;
  __syncthreads();
  if (lane == 0 && column < columns) {
#pragma unroll
    for (int i = 1; i < kSumLanes; ++i) {
      sum += shared[i][threadIdx.x];
    }
    sums[column] = sum;
  }
}

}  // namespace mdn::kernels::cuda
