// A block a row: one pass for the maximum and the sum, kept as a pair per thread, one more for the
// gradient. Between them the row waits in shared memory where two blocks of a multiprocessor can
// keep theirs, else in L2, which the rows of all resident blocks together overflow. Bound by
// memory.
#include "mdn/kernels/cross_entropy.h"

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kAtOnce = 4;  // vectors of a thread that are loaded together
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

/// The sum over kLanes neighbouring lanes.
template <class T, int kLanes>
__device__ Sum join_lanes(Sum own) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const Sum other = {__shfl_xor_sync(kAllLanes, own.most, offset),
                       __shfl_xor_sync(kAllLanes, own.sum, offset)};
    own = join<T>(own, other);
  }
  return own;
}

template <class T, bool kKept>
__global__ void __launch_bounds__(kThreads, 2) cross_entropy_kernel(CrossEntropy call) {
  constexpr int N = kVector<T>;
  constexpr int kStep = kThreads * N;
  extern __shared__ uint4 kept[];  // with kKept the row; each thread reads what it wrote
  __shared__ Sum shared[kWarps];
  __shared__ float log_sum;
  const int64_t row = blockIdx.x;
  T* const x = static_cast<T*>(call.logits) + row * call.stride;
  const int64_t target = call.targets[row];
  const bool ignored = target == kIgnored;
  const int vocab = static_cast<int>(call.vocab), stride = static_cast<int>(call.stride);
  const int first = static_cast<int>(threadIdx.x) * N;
  // Elements past the vocabulary, which only the last vectors have, as `value`.
  const auto mask = [&](int c, float(&v)[N], float value) {
    if (c + N > vocab) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        v[i] = c + i < vocab ? v[i] : value;
      }
    }
  };
  Sum own;
  if (!ignored) {
    for (int from = first; from < vocab; from += kAtOnce * kStep) {
      Run<T, N> raw[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        raw[k].clear();
        if (from + k * kStep < vocab) {
          raw[k].load(x + from + k * kStep);
        }
      }
      float v[kAtOnce][N];
      float most = own.most;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int c = from + k * kStep;
        if (kKept && c < vocab) {
          kept[c / N] = raw[k].words[0];
        }
        raw[k].unpack(v[k]);
        mask(c, v[k], kLowest);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          most = fmaxf(most, v[k][i]);
        }
      }
      own.sum *= exponential<T>(own.most - most);
      own.most = most;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          own.sum += exponential<T>(v[k][i] - most);
        }
      }
    }
    own = join_lanes<T, 32>(own);
    if (threadIdx.x % 32 == 0) {
      shared[threadIdx.x / 32] = own;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    own = join_lanes<T, kWarps>(ignored ? Sum{} : shared[threadIdx.x % kWarps]);
    if (threadIdx.x == 0) {
      log_sum = own.most + logf(own.sum);
      const bool known = target >= 0 && target < vocab;
      call.losses[row] = ignored ? 0.0f : known ? log_sum - to_float(x[target]) : nanf("");
    }
  }
  __syncthreads();
  if (!call.gradient) {
    return;
  }
  for (int from = first; from < stride; from += kAtOnce * kStep) {
    Run<T, N> raw[kAtOnce];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int c = from + k * kStep;
      raw[k].clear();
      if (!ignored && c < vocab) {
        if constexpr (kKept) {
          raw[k].words[0] = kept[c / N];
        } else {
          raw[k].load(x + c);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int c = from + k * kStep;
      if (c < stride) {
        float v[N] = {};
        if (!ignored) {
          raw[k].unpack(v);
#pragma unroll
          for (int i = 0; i < N; ++i) {
            v[i] = exponential<T>(v[i] - log_sum);
          }
          if (target >= c && target < c + N) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
              v[i] -= c + i == target ? 1.0f : 0.0f;
            }
          }
          mask(c, v, 0);
        }
        store_run(x + c, v);
      }
    }
  }
}

}  // namespace

void cross_entropy(const CrossEntropy& call, Stream stream) {
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    constexpr int N = kVector<T>;
    constexpr int kOther = 2048;  // bytes of shared memory that a block takes besides, at most
    const auto row = static_cast<size_t>((call.vocab + N - 1) / N) * sizeof(uint4);
    const bool kept =
        call.gradient && 2 * (row + kOther) <= static_cast<size_t>(device_facts().shared_memory);
    launch("launch of cross_entropy",
           kept ? cross_entropy_kernel<T, true> : cross_entropy_kernel<T, false>, call.rows,
           kThreads, kept ? row : 0, static_cast<cudaStream_t>(stream), call);
  });
}

}  // namespace mdn::kernels::cuda
