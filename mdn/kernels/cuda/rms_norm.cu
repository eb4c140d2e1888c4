// A warp holds whole rows in registers: x is read once, and the backward pass makes what the
// forward pass had from it again. Bound by memory.
#include "mdn/kernels/rms_norm.h"

#include <type_traits>

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kMostVectors = 8;           // of 16 bytes a lane and row
constexpr int64_t kBackwardBlocks = 528;  // rows of partial sums; four blocks on each of 132 SMs

int vectors_of(DType dtype, int64_t D) {
  const int64_t of_warp = 16 / static_cast<int64_t>(size_of(dtype)) * kLanes;
  return static_cast<int>((D + of_warp - 1) / of_warp);
}

int64_t backward_blocks(int64_t rows) {
  const int64_t all = (rows + kWarps - 1) / kWarps;
  return all < kBackwardBlocks ? all : kBackwardBlocks;
}

__device__ inline int64_t gate_offset(int64_t row, int64_t heads, int64_t stride, int64_t D) {
  return row / heads * stride + row % heads * D;
}

struct Shape {
  int64_t rows, D;
  float eps;
};

// kRows rows a warp at a time, kVectors vectors a lane and row.
template <class T, int kVectors, int kRows, bool kGated>
__global__ void __launch_bounds__(kThreads)
    rms_norm_forward_kernel(Shape shape, const T* x, RmsNormGate gate, const float* weight, T* y) {
  constexpr int N = kVector<T>;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t first =
      (static_cast<int64_t>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / kLanes) * kRows;
  Run<T, N> raw[kRows][kVectors], raw_gate[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r;
    const int64_t at = gate_offset(row, gate.heads, gate.stride, shape.D);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * kLanes + lane) * N;
      raw[r][i].clear();
      if (row < shape.rows && column < shape.D) {
        raw[r][i].load(x + row * shape.D + column);
        if constexpr (kGated) {
          raw_gate[r][i].load(static_cast<const T*>(gate.data) + at + column);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      float v[N];
      raw[r][i].unpack(v);
#pragma unroll
      for (int e = 0; e < N; ++e) {
        squares += v[e] * v[e];
      }
    }
    const float inverse =
        rsqrtf(sum_of_lanes<kLanes>(squares) / static_cast<float>(shape.D) + shape.eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * kLanes + lane) * N;
      if (row < shape.rows && column < shape.D) {
        float v[N], w[N], g[N];
        raw[r][i].unpack(v);
        load_run(weight + column, w);
        if constexpr (kGated) {
          raw_gate[r][i].unpack(g);
        }
#pragma unroll
        for (int e = 0; e < N; ++e) {
          v[e] *= inverse * w[e];
          if constexpr (kGated) {
            v[e] *= sigmoid<T>(g[e]);
          }
        }
        store_run(y + row * shape.D + column, v);
      }
    }
  }
}

struct Gradients {
  const void* d_y;
  const void* add;
  void* d_x;
  void* d_gate;
  int64_t d_gate_stride;
  void* y;
  float* d_weight;  // [blocks, D] partial sums
};

//     n = r x, r = 1 / sqrt(mean(x²) + eps);  d_n = d_y weight s, s = sigmoid(gate)
//     d_x = r (d_n - n mean(d_n n));  d_gate = d_y n weight s (1 - s);  d_weight = sum d_y n s
template <class T, int kVectors, bool kGated>
__global__ void __launch_bounds__(kThreads, kVectors <= 4 ? 2 : 1)
    rms_norm_backward_kernel(Shape shape, const T* x, RmsNormGate gate, const float* weight,
                             Gradients gradients) {
  constexpr int N = kVector<T>;
  extern __shared__ float shared[];  // [kWarps, D]
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  float d_w[kVectors][N] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp; row < shape.rows;
       row += step) {
    const int64_t at = gate_offset(row, gate.heads, gate.stride, shape.D);
    Run<T, N> raw_x[kVectors], raw_d[kVectors], raw_gate[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * kLanes + lane) * N;
      raw_x[i].clear();
      raw_d[i].clear();
      raw_gate[i].clear();
      if (column < shape.D) {
        raw_x[i].load(x + row * shape.D + column);
        raw_d[i].load(static_cast<const T*>(gradients.d_y) + row * shape.D + column);
        if constexpr (kGated) {
          raw_gate[i].load(static_cast<const T*>(gate.data) + at + column);
        }
      }
    }
    float squares = 0, dots = 0;  // sums of x² and of d_n x
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * kLanes + lane) * N;
      float v[N], d[N], g[N], w[N] = {};
      raw_x[i].unpack(v);
      raw_d[i].unpack(d);
      raw_gate[i].unpack(g);
      if (column < shape.D) {
        load_run(weight + column, w);
      }
#pragma unroll
      for (int e = 0; e < N; ++e) {
        squares += v[e] * v[e];
        dots += v[e] * d[e] * w[e] * (kGated ? sigmoid<T>(g[e]) : 1.0f);
      }
    }
    squares = sum_of_lanes<kLanes>(squares);
    dots = sum_of_lanes<kLanes>(dots);
    const float size = static_cast<float>(shape.D);
    const float inverse = rsqrtf(squares / size + shape.eps);
    const float mean = inverse * inverse * dots / size;  // r mean(d_n n)
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * kLanes + lane) * N;
      if (column < shape.D) {
        float v[N], d[N], g[N], w[N], rest[N] = {}, out[N], d_g[N];
        raw_x[i].unpack(v);
        raw_d[i].unpack(d);
        raw_gate[i].unpack(g);
        load_run(weight + column, w);
        if (gradients.add != nullptr) {
          load_run(static_cast<const T*>(gradients.add) + row * shape.D + column, rest);
        }
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float n = inverse * v[e];
          const float s = kGated ? sigmoid<T>(g[e]) : 1.0f;
          const float gated = s * n;
          d_w[i][e] += d[e] * gated;
          out[e] = gated * w[e];
          d_g[e] = d[e] * out[e] * (1 - s);
          v[e] = rest[e] + inverse * (d[e] * w[e] * s - mean * v[e]);
        }
        store_run(static_cast<T*>(gradients.d_x) + row * shape.D + column, v);
        if (gradients.y != nullptr) {
          store_run(static_cast<T*>(gradients.y) + row * shape.D + column, out);
        }
        if constexpr (kGated) {
          store_run(static_cast<T*>(gradients.d_gate) +
                        gate_offset(row, gate.heads, gradients.d_gate_stride, shape.D) + column,
                    d_g);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (i * kLanes + lane) * N;
    if (column < shape.D) {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        shared[warp * shape.D + column + e] = d_w[i][e];
      }
    }
  }
  __syncthreads();
  for (int64_t column = threadIdx.x; column < shape.D; column += kThreads) {
    float sum = 0;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      sum += shared[other * shape.D + column];
    }
    gradients.d_weight[blockIdx.x * shape.D + column] = sum;
  }
}

template <class F>
void with_vectors(int vectors, F&& f) {
  if (vectors <= 1) {
    return f(std::integral_constant<int, 1>{});
  }
  if (vectors <= 2) {
    return f(std::integral_constant<int, 2>{});
  }
  if (vectors <= 4) {
    return f(std::integral_constant<int, 4>{});
  }
  return f(std::integral_constant<int, kMostVectors>{});
}

}  // namespace

std::string rms_norm_unsupported(DType dtype, int64_t D) {
  if (D % 8 != 0) {
    return "rows must have a multiple of 8 elements";
  }
  return vectors_of(dtype, D) <= kMostVectors ? "" : "rows are too long";
}

size_t rms_norm_backward_workspace(int64_t rows, int64_t D) {
  return static_cast<size_t>(backward_blocks(rows) * D) * sizeof(float);
}

void rms_norm_forward(const RmsNormForward& call, Stream stream) {
  const Shape shape{.rows = call.rows, .D = call.D, .eps = static_cast<float>(call.eps)};
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_vectors(vectors_of(call.dtype, call.D), [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      constexpr int kRows = kVectors >= 4 ? 1 : 4 / kVectors;
      launch("launch of rms_norm_forward",
             call.gate.data != nullptr ? rms_norm_forward_kernel<T, kVectors, kRows, true>
                                       : rms_norm_forward_kernel<T, kVectors, kRows, false>,
             (call.rows + kWarps * kRows - 1) / (kWarps * kRows), kThreads, 0,
             static_cast<cudaStream_t>(stream), shape, static_cast<const T*>(call.x), call.gate,
             call.weight, static_cast<T*>(call.y));
    });
  });
}

void rms_norm_backward(const RmsNormBackward& call, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const Shape shape{.rows = call.rows, .D = call.D, .eps = static_cast<float>(call.eps)};
  const int64_t blocks = backward_blocks(call.rows);
  const Gradients gradients{.d_y = call.d_y,
                            .add = call.add,
                            .d_x = call.d_x,
                            .d_gate = call.d_gate,
                            .d_gate_stride = call.d_gate_stride,
                            .y = call.y,
                            .d_weight = static_cast<float*>(call.workspace)};
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_vectors(vectors_of(call.dtype, call.D), [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      launch("launch of rms_norm_backward",
             call.gate.data != nullptr ? rms_norm_backward_kernel<T, kVectors, true>
                                       : rms_norm_backward_kernel<T, kVectors, false>,
             blocks, kThreads, static_cast<size_t>(kWarps * call.D) * sizeof(float), stream, shape,
             static_cast<const T*>(call.x), call.gate, call.weight, gradients);
    });
  });
  column_sums(gradients.d_weight, blocks, call.D, call.d_weight, stream);
}

}  // namespace mdn::kernels::cuda
