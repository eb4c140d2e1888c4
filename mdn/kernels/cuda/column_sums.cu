#include "mdn/kernels/cuda/column_sums.h"

#include "mdn/kernels/cuda/column_sums.cuh"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda {
namespace {

__global__ void __launch_bounds__(kSumThreads)
    column_sums_kernel(const float* partials, int64_t rows, int64_t columns, float* sums) {
  wait_for_previous();
  sum_columns(partials, rows, columns, blockIdx.x, sums);
}

}  // namespace

void column_sums(const float* partials, int64_t rows, int64_t columns, float* sums,
                 cudaStream_t stream) {
  launch_early("launch of column_sums", column_sums_kernel,
               (columns + kSumColumns - 1) / kSumColumns, kSumThreads, 0, stream, partials, rows,
               columns, sums);
}

}  // namespace mdn::kernels::cuda
