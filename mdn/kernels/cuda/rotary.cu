// rotary: a thread rotates the same few channels of all heads of a token, whose angles it computes
// once. Bound by memory.
#include "mdn/kernels/rotary.h"

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/rotary_angles.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    rotary_kernel(Rotary call, const __grid_constant__ RotaryFrequencies frequencies) {
  const auto half = static_cast<int>(call.d / 2), runs = half / kCount;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t token = n / runs;
  if (token >= call.rows * call.T) {
    return;
  }
  const int first = static_cast<int>(n % runs) * kCount;
  const auto position = static_cast<double>(call.positions[token % call.T]);
  float sine[kCount], cosine[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    rotary_angle(position, frequencies.of[first + i], sine[i], cosine[i]);
    sine[i] = call.backward ? -sine[i] : sine[i];
  }
  const int64_t offset = token * call.heads * call.d + first;
  const T* x = static_cast<const T*>(call.x) + offset;
  T* y = static_cast<T*>(call.y) + offset;
  for (int64_t head = 0; head < call.heads; ++head, x += call.d, y += call.d) {
    float a[kCount], b[kCount], rotated[kCount];
    load_run(x, a);
    load_run(x + half, b);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      rotated[i] = a[i] * cosine[i] - b[i] * sine[i];
      b[i] = a[i] * sine[i] + b[i] * cosine[i];
    }
    store_run(y, rotated);
    store_run(y + half, b);
  }
}

}  // namespace

void rotary(const Rotary& call, Stream stream) {
  const RotaryFrequencies frequencies = rotary_frequencies(call.theta, call.d);
  const int64_t half = call.d / 2;
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    constexpr int kCount = kVector<T>;
    const bool vectors = half % kCount == 0 && reinterpret_cast<uintptr_t>(call.x) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(call.y) % 16 == 0;
    const int64_t threads = call.rows * call.T * (vectors ? half / kCount : half);
    launch("launch of rotary", vectors ? rotary_kernel<T, kCount> : rotary_kernel<T, 1>,
           (threads + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream),
           call, frequencies);
  });
}

}  // namespace mdn::kernels::cuda
