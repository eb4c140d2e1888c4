// A block a row: one pass for the maximum and the sum, kept as a pair per thread, one more for the
// gradient, whose reads come from L2 (rows of all resident blocks together take about half of it).
#include "mdn/kernels/cross_entropy.h"

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kIgnored = -100;
constexpr float kLowest = -3.0e38f;  // finite: differences from it are no NaN

/// sum = sum of exp(x - most) over what has been seen.
struct Sum {
  float most = kLowest, sum = 0;
};

template <class T>
__device__ Sum join(const Sum& a, const Sum& b) {
  const float most = fmaxf(a.most, b.most);
  return {most, a.sum * exponential<T>(a.most - most) + b.sum * exponential<T>(b.most - most)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropy call) {
  constexpr int N = kVector<T>;
  __shared__ Sum shared[kWarps];
  __shared__ float log_sum;
  const int64_t row = blockIdx.x;
  T* x = static_cast<T*>(call.logits) + row * call.stride;
  const int64_t target = call.targets[row];
  const bool ignored = target == kIgnored;
  Sum own;
  if (!ignored) {
    for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < call.vocab; c += kThreads * N) {
      float v[N];
      load_run(x + c, v);
      float most = own.most;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        v[i] = c + i < call.vocab ? v[i] : kLowest;
        most = fmaxf(most, v[i]);
      }
      own.sum *= exponential<T>(own.most - most);
      own.most = most;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        own.sum += exponential<T>(v[i] - most);
      }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const Sum other = {__shfl_xor_sync(kAllLanes, own.most, offset),
                         __shfl_xor_sync(kAllLanes, own.sum, offset)};
      own = join<T>(own, other);
    }
    if (threadIdx.x % 32 == 0) {
      shared[threadIdx.x / 32] = own;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps && !ignored; ++warp) {
      own = join<T>(own, shared[warp]);
    }
    log_sum = own.most + logf(own.sum);
    const bool known = target >= 0 && target < call.vocab;
    call.losses[row] = ignored ? 0.0f : known ? log_sum - to_float(x[target]) : nanf("");
  }
  __syncthreads();
  if (!call.gradient) {
    return;
  }
  for (int64_t c = static_cast<int64_t>(threadIdx.x) * N; c < call.stride; c += kThreads * N) {
    float v[N] = {};
    if (!ignored) {
      load_run(x + c, v);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float p = exponential<T>(v[i] - log_sum) - (c + i == target ? 1.0f : 0.0f);
        v[i] = c + i < call.vocab ? p : 0.0f;
      }
    }
    store_run(x + c, v);
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& call, Stream stream) {
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    launch("launch of cross_entropy", cross_entropy_kernel<T>, call.rows, kThreads, 0,
           static_cast<cudaStream_t>(stream), call);
  });
}

}  // namespace mdn::kernels::cuda
