#include "mdn/kernels/cuda/column_sums.h"

#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kColumns = 32;
constexpr int kLanes = 16;  // rows added side by side

__global__ void __launch_bounds__(kColumns* kLanes)
    column_sums_kernel(const float* partials, int64_t rows, int64_t columns, float* sums) {
  __shared__ float shared[kLanes][kColumns];
  const int lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x) * kColumns + static_cast<int>(threadIdx.x) % kColumns;
  float sum = 0;
  if (column < columns) {
    for (int64_t row = lane; row < rows; row += kLanes) {
      sum += partials[row * columns + column];
    }
  }
  shared[lane][threadIdx.x % kColumns] = sum;
  __syncthreads();
  if (lane == 0 && column < columns) {
#pragma unroll
    for (int i = 1; i < kLanes; ++i) {
      sum += shared[i][threadIdx.x];
    }
    sums[column] = sum;
  }
}

}  // namespace

void column_sums(const float* partials, int64_t rows, int64_t columns, float* sums,
                 cudaStream_t stream) {
  launch("launch of column_sums", column_sums_kernel, (columns + kColumns - 1) / kColumns,
         kColumns * kLanes, 0, stream, partials, rows, columns, sums);
}

}  // namespace mdn::kernels::cuda
