// swiglu, a vector a thread; single elements where rows do not divide into vectors. Bound by
// memory.
#include "mdn/kernels/swiglu.h"

#include <initializer_list>

#include "mdn/kernels/cuda/divide.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;

/// Of the run of kCount elements that this thread has: its place in contiguous and strided rows.
struct Place {
  int64_t row, column;
};

template <int kCount>
__device__ Place place_of(int64_t columns) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const Division at = divide(i, columns / kCount);
  return {at.quotient, at.remainder * kCount};
}

template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) swiglu_forward_kernel(SwigluForward call) {
  const Place p = place_of<kCount>(call.columns);
  if (p.row >= call.rows) {
    return;
  }
  float a[kCount], b[kCount];
  load_run(static_cast<const T*>(call.a) + p.row * call.stride + p.column, a);
  load_run(static_cast<const T*>(call.b) + p.row * call.stride + p.column, b);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    a[i] *= sigmoid<T>(a[i]) * b[i];
  }
  store_run(static_cast<T*>(call.y) + p.row * call.columns + p.column, a);
}

// With s = sigmoid(a): d_a = d_y b s (1 + a (1 - s)), d_b = d_y a s.
template <class T, int kCount>
__global__ void __launch_bounds__(kThreads) swiglu_backward_kernel(SwigluBackward call) {
  const Place p = place_of<kCount>(call.columns);
  if (p.row >= call.rows) {
    return;
  }
  float a[kCount], b[kCount], d_y[kCount], y[kCount];
  load_run(static_cast<const T*>(call.a) + p.row * call.stride + p.column, a);
  load_run(static_cast<const T*>(call.b) + p.row * call.stride + p.column, b);
  load_run(static_cast<const T*>(call.d_y) + p.row * call.columns + p.column, d_y);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const float s = sigmoid<T>(a[i]), silu = a[i] * s;
    y[i] = silu * b[i];
    a[i] = d_y[i] * b[i] * s * (1 + a[i] * (1 - s));
    b[i] = d_y[i] * silu;
  }
  store_run(static_cast<T*>(call.d_a) + p.row * call.d_stride + p.column, a);
  store_run(static_cast<T*>(call.d_b) + p.row * call.d_stride + p.column, b);
  if (call.y != nullptr) {
    store_run(static_cast<T*>(call.y) + p.row * call.columns + p.column, y);
  }
}

/// Whether every row of every operand divides into vectors that start at multiples of 16 bytes.
template <class T>
bool in_vectors(int64_t columns, int64_t stride, std::initializer_list<const void*> pointers) {
  bool yes = columns % kVector<T> == 0 && stride % kVector<T> == 0;
  for (const void* pointer : pointers) {
    yes = yes && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  }
  return yes;
}

int64_t blocks_of(int64_t elements, int64_t of_thread) {
  return (elements + of_thread * kThreads - 1) / (of_thread * kThreads);
}

}  // namespace

void swiglu_forward(const SwigluForward& call, Stream stream) {
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const bool vectors = in_vectors<T>(call.columns, call.stride, {call.a, call.b, call.y});
    launch("launch of swiglu_forward",
           vectors ? swiglu_forward_kernel<T, kVector<T>> : swiglu_forward_kernel<T, 1>,
           blocks_of(call.rows * call.columns, vectors ? kVector<T> : 1), kThreads, 0,
           static_cast<cudaStream_t>(stream), call);
  });
}

void swiglu_backward(const SwigluBackward& call, Stream stream) {
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const bool vectors = in_vectors<T>(call.columns, call.stride,
                                       {call.a, call.b, call.d_y, call.d_a, call.d_b, call.y}) &&
                         call.d_stride % kVector<T> == 0;
    launch("launch of swiglu_backward",
           vectors ? swiglu_backward_kernel<T, kVector<T>> : swiglu_backward_kernel<T, 1>,
           blocks_of(call.rows * call.columns, vectors ? kVector<T> : 1), kThreads, 0,
           static_cast<cudaStream_t>(stream), call);
  });
}

}  // namespace mdn::kernels::cuda
