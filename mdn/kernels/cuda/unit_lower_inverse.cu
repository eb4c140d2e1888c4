// unit_lower_inverse: a block a matrix, a thread a column of the inverse, kept in registers.
#include "mdn/kernels/unit_lower_inverse.h"

#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kRows = kUnitLowerRows;

__global__ void __launch_bounds__(kRows) unit_lower_inverse_kernel(UnitLowerInverse call) {
  __shared__ float4 shared[kRows * kRows / 4];
  const auto j = static_cast<int>(threadIdx.x);
  const int64_t matrix = static_cast<int64_t>(blockIdx.x) * kRows * kRows;
  const auto* L = reinterpret_cast<const float4*>(call.L + matrix);
  for (int i = j; i < kRows * kRows / 4; i += kRows) {
    shared[i] = L[i];
  }
  __syncthreads();
  float* T = call.T + matrix;
  float x[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    // T[t,j] = [t = j] - sum over i < t of L[t,i] T[i,j]
    float sum = t == j ? 1.0f : 0.0f;
#pragma unroll
    for (int quad = 0; quad < (t + 3) / 4; ++quad) {
      const float4 l = shared[t * kRows / 4 + quad];
      const float of[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (4 * quad + i < t) {
          sum -= of[i] * x[4 * quad + i];
        }
      }
    }
    x[t] = sum;
    T[t * kRows + j] = sum;
  }
}

}  // namespace

void unit_lower_inverse(const UnitLowerInverse& call, Stream stream) {
  launch("launch of unit_lower_inverse", unit_lower_inverse_kernel, call.matrices, kRows, 0,
         static_cast<cudaStream_t>(stream), call);
}

}  // namespace mdn::kernels::cuda
