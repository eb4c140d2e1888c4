// A warp, or for long rows several, hold whole rows in registers: x is read once, and the backward
// pass makes what the forward pass had from it again. Bound by memory.
#include "mdn/kernels/rms_norm.h"

#include <type_traits>

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/divide.cuh"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kMostVectors = 2;           // of 16 bytes a lane and row
constexpr int64_t kBackwardBlocks = 264;  // rows of partial sums; two blocks on each of 132 SMs

enum class Form { kPlain, kSigmoid, kSilu, kSiluFirst, kSkipSiluFirst };

/// Vectors a lane and row when `warps` warps hold a row.
int64_t vectors_of(DType dtype, int64_t D, int64_t warps) {
  const int64_t together = 16 / static_cast<int64_t>(size_of(dtype)) * kLanes * warps;
  return (D + together - 1) / together;
}

int64_t backward_blocks(int64_t rows) {
  return rows < kBackwardBlocks ? rows : kBackwardBlocks;
}

/// Sums over the lanes of kRowWarps neighbouring warps, the same bits in all of them. `scratch` is
/// shared memory, another one in turn for each call of a block.
template <int kRowWarps, int kSums>
__device__ inline void sum_over_row(float (&x)[kSums], float (&scratch)[kSums][kWarps]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    x[i] = sum_of_lanes<kLanes>(x[i]);
  }
  if constexpr (kRowWarps > 1) {
    if (threadIdx.x % kLanes == 0) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        scratch[i][threadIdx.x / kLanes] = x[i];
      }
    }
    __syncthreads();
    const int first = static_cast<int>(threadIdx.x) / kLanes / kRowWarps * kRowWarps;
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      x[i] = 0;
#pragma unroll
      for (int warp = 0; warp < kRowWarps; ++warp) {
        x[i] += scratch[i][first + warp];
      }
    }
  }
}

/// Where a row's gate lies; moves along the rows without dividing.
struct GatePlace {
  int64_t token, head;

  __device__ GatePlace(int64_t row, int64_t heads) {
    const Division of = divide(row, heads);
    token = of.quotient;
    head = of.remainder;
  }
  __device__ void advance(const GatePlace& step, int64_t heads) {
    token += step.token;
    head += step.head;
    if (head >= heads) {
      head -= heads;
      ++token;
    }
  }
  __device__ int64_t offset(int64_t stride, int64_t D) const { return token * stride + head * D; }
};

/// A gate's factor and its derivative.
template <class T, Form kForm>
struct Gate {
  float factor, slope;

  __device__ explicit Gate(float g) {
    const float s = sigmoid<T>(g);
    factor = kForm == Form::kSigmoid ? s : g * s;
    slope = kForm == Form::kSigmoid ? s * (1 - s) : s * (1 + g * (1 - s));
  }
};

struct Shape {
  int64_t rows, D;
  float eps;
};

/// u += scale skip, of the columns from `column` on.
template <class T, int N>
__device__ inline void add_skip(const RmsNormSkip& skip, const Run<T, N>& raw, int column,
                                int64_t D, float (&u)[N]) {
  float scale[N] = {}, rows[N];
  if (column < D) {
    load_run(skip.scale + column, scale);
  }
  raw.unpack(rows);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    u[e] += scale[e] * rows[e];
  }
}

/// How rows lie on a block: kRowWarps warps hold kRows rows at a time, kVectors vectors a lane and
/// row.
template <int kRowWarps_, int kVectors_, int kRows_>
struct Layout {
  static constexpr int kRowWarps = kRowWarps_, kVectors = kVectors_, kRows = kRows_;
  static constexpr int kRowLanes = kLanes * kRowWarps;
  static constexpr int kGroups = kWarps / kRowWarps;  // of kRows rows, in a block
};

template <class L, int kVectors, int N>
__device__ inline void load_weight(const float* weight, int64_t D, int lane,
                                   float (&w)[kVectors][N]) {
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = (i * L::kRowLanes + lane) * N;
    if (column < D) {
      load_run(weight + column, w[i]);
    } else {
#pragma unroll
      for (int e = 0; e < N; ++e) {
        w[i][e] = 0;
      }
    }
  }
}

/// Blocks of the forward pass that a multiprocessor must hold, rows of heads with their gates: left
/// alone, the compiler takes registers for one block less than memory wants.
template <class L, Form kForm>
inline constexpr int kForwardBlocks = kForm == Form::kSigmoid || kForm == Form::kSilu
                                          ? (L::kVectors == 1 ? 4 : 3)
                                          : 1;

template <class X, class T, class L, Form kForm>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<L, kForm>)
    rms_norm_forward_kernel(Shape shape, const X* x, RmsNormGate gate, RmsNormSkip skip,
                            const float* weight, T* y) {
  constexpr int N = kVector<T>;
  constexpr bool kGated = kForm != Form::kPlain;
  constexpr bool kSkip = kForm == Form::kSkipSiluFirst;
  constexpr bool kFirst = kForm == Form::kSiluFirst || kSkip;
  constexpr int kVectors = L::kVectors, kRows = L::kRows;
  __shared__ float scratch[kRows][1][kWarps];
  let_next_start();
  wait_for_previous();
  const int lane = static_cast<int>(threadIdx.x) % L::kRowLanes;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * L::kGroups +
                         static_cast<int>(threadIdx.x) / L::kRowLanes) *
                        kRows;
  GatePlace place(kGated ? first : 0, gate.heads);
  const GatePlace next(1, gate.heads);
  Run<X, N> raw[kRows][kVectors];
  Run<T, N> raw_gate[kRows][kVectors], raw_skip[kRows][kVectors];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r;
    const int64_t at = place.offset(gate.stride, shape.D);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * L::kRowLanes + lane) * N;
      raw[r][i].clear();
      raw_gate[r][i].clear();
      raw_skip[r][i].clear();
      if (row < shape.rows && column < shape.D) {
        raw[r][i].load(x + row * shape.D + column);
        if constexpr (kGated) {
          raw_gate[r][i].load(static_cast<const T*>(gate.data) + at + column);
        }
        if constexpr (kSkip) {
          raw_skip[r][i].load(static_cast<const T*>(skip.data) + row * shape.D + column);
        }
      }
    }
    place.advance(next, gate.heads);
  }
  float w[kVectors][N];
  load_weight<L>(weight, shape.D, lane, w);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = first + r;
    float u[kVectors][N];
    float squares[1] = {};
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      raw[r][i].unpack(u[i]);
      if constexpr (kSkip) {
        add_skip(skip, raw_skip[r][i], (i * L::kRowLanes + lane) * N, shape.D, u[i]);
      }
      if constexpr (kFirst) {
        float g[N];
        raw_gate[r][i].unpack(g);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          u[i][e] *= Gate<T, kForm>(g[e]).factor;
        }
      }
#pragma unroll
      for (int e = 0; e < N; ++e) {
        squares[0] += u[i][e] * u[i][e];
      }
    }
    sum_over_row<L::kRowWarps>(squares, scratch[r]);
    const float inverse = rsqrtf(squares[0] / static_cast<float>(shape.D) + shape.eps);
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * L::kRowLanes + lane) * N;
      if (row < shape.rows && column < shape.D) {
        float g[N];
        if constexpr (kGated && !kFirst) {
          raw_gate[r][i].unpack(g);
        }
#pragma unroll
        for (int e = 0; e < N; ++e) {
          u[i][e] *= inverse * w[i][e];
          if constexpr (kGated && !kFirst) {
            u[i][e] *= Gate<T, kForm>(g[e]).factor;
          }
        }
        store_run(y + row * shape.D + column, u[i]);
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
  void* d_skip;
  void* y;
  float* d_weight;  // [blocks, D] partial sums
  float* d_scale;   // [blocks, D] partial sums
};

/// What the backward pass reads of kRows neighbouring rows.
template <class X, class T, class L>
struct BackwardRows {
  Run<X, kVector<T>> x[L::kRows][L::kVectors];
  Run<T, kVector<T>> d_y[L::kRows][L::kVectors], gate[L::kRows][L::kVectors];
  Run<T, kVector<T>> skip[L::kRows][L::kVectors];
  Run<X, kVector<T>> add[L::kRows][L::kVectors];
};

// With u = x, or x silu(gate) where the gate comes first, n = r u, r = 1 / sqrt(mean(u²) + eps),
// and f the gate's factor where it comes after, else 1:
//     d_n = d_y weight f;  d_u = r (d_n - n mean(d_n n));  d_weight = sum d_y n f
//     after: d_x = d_u, d_gate = d_y n weight f';  first: d_x = d_u silu, d_gate = d_u x silu'
// where x stands for x + scale skip with a skip, whose d_skip = d_x scale, d_scale = sum d_x skip.
// The next rows are on their way while these are computed with.
template <class X, class T, class L, Form kForm>
__global__ void __launch_bounds__(kThreads, 2)
    rms_norm_backward_kernel(Shape shape, const X* x, RmsNormGate gate, RmsNormSkip skip,
                             const float* weight, Gradients gradients) {
  constexpr int N = kVector<T>;
  constexpr bool kGated = kForm != Form::kPlain;
  constexpr bool kSkip = kForm == Form::kSkipSiluFirst;
  constexpr bool kFirst = kForm == Form::kSiluFirst || kSkip;
  constexpr int kVectors = L::kVectors, kRows = L::kRows;
  // Else it is loaded where it is added: there are no registers for it.
  constexpr bool kAddAhead = kForm == Form::kPlain && kVectors == 1;
  extern __shared__ float shared[];  // [kGroups, D]
  __shared__ float scratch[2][kRows][2][kWarps];
  const int lane = static_cast<int>(threadIdx.x) % L::kRowLanes;
  const int group = static_cast<int>(threadIdx.x) / L::kRowLanes;
  float d_w[kVectors][N] = {}, d_s[kVectors][N] = {};
  const int64_t step = static_cast<int64_t>(gridDim.x) * L::kGroups * kRows;
  int64_t of_block = static_cast<int64_t>(blockIdx.x) * L::kGroups * kRows;
  int64_t first = of_block + group * kRows;
  const GatePlace one(kGated ? 1 : 0, gate.heads), stride(kGated ? step : 0, gate.heads);
  GatePlace place(kGated ? first : 0, gate.heads);  // of the rows in hand
  GatePlace ahead = place;                          // of the rows to load

  const auto load = [&](int64_t from, BackwardRows<X, T, L>& rows) {
    GatePlace of_row = ahead;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = from + r;
      const int64_t at = of_row.offset(gate.stride, shape.D);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int column = (i * L::kRowLanes + lane) * N;
        rows.x[r][i].clear();
        rows.d_y[r][i].clear();
        rows.gate[r][i].clear();
        rows.skip[r][i].clear();
        rows.add[r][i].clear();
        if (row < shape.rows && column < shape.D) {
          rows.x[r][i].load(x + row * shape.D + column);
          rows.d_y[r][i].load(static_cast<const T*>(gradients.d_y) + row * shape.D + column);
          if constexpr (kGated) {
            rows.gate[r][i].load(static_cast<const T*>(gate.data) + at + column);
          }
          if constexpr (kSkip) {
            rows.skip[r][i].load(static_cast<const T*>(skip.data) + row * shape.D + column);
          }
          if (kAddAhead && gradients.add != nullptr) {
            rows.add[r][i].load(static_cast<const X*>(gradients.add) + row * shape.D + column);
          }
        }
      }
      of_row.advance(one, gate.heads);
    }
    ahead.advance(stride, gate.heads);
  };

  float w[kVectors][N];
  load_weight<L>(weight, shape.D, lane, w);
  BackwardRows<X, T, L> now, next;
  load(first, now);
  for (int turn = 0; of_block < shape.rows; of_block += step, first += step, turn ^= 1) {
    load(first + step, next);
    GatePlace of_row = place;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = first + r;
      float sums[2] = {};  // of u² and of d_n u
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int column = (i * L::kRowLanes + lane) * N;
        float u[N], d[N], g[N];
        now.x[r][i].unpack(u);
        now.d_y[r][i].unpack(d);
        now.gate[r][i].unpack(g);
        if constexpr (kSkip) {
          add_skip(skip, now.skip[r][i], column, shape.D, u);
        }
#pragma unroll
        for (int e = 0; e < N; ++e) {
          const float f = kGated ? Gate<T, kForm>(g[e]).factor : 1.0f;
          u[e] *= kFirst ? f : 1.0f;
          sums[0] += u[e] * u[e];
          sums[1] += u[e] * d[e] * w[i][e] * (kFirst ? 1.0f : f);
        }
      }
      sum_over_row<L::kRowWarps>(sums, scratch[turn][r]);
      const float size = static_cast<float>(shape.D);
      const float inverse = rsqrtf(sums[0] / size + shape.eps);
      const float mean = inverse * inverse * sums[1] / size;  // r mean(d_n n)
      const int64_t gate_at = of_row.offset(gradients.d_gate_stride, shape.D);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        const int column = (i * L::kRowLanes + lane) * N;
        if (row < shape.rows && column < shape.D) {
          float v[N], d[N], g[N], rest[N] = {}, out[N], d_g[N];
          now.x[r][i].unpack(v);
          now.d_y[r][i].unpack(d);
          now.gate[r][i].unpack(g);
          if constexpr (kSkip) {
            add_skip(skip, now.skip[r][i], column, shape.D, v);
          }
          if (kAddAhead) {
            now.add[r][i].unpack(rest);
          } else if (gradients.add != nullptr) {
            load_run(static_cast<const X*>(gradients.add) + row * shape.D + column, rest);
          }
#pragma unroll
          for (int e = 0; e < N; ++e) {
            const Gate<T, kForm> of(g[e]);
            const float f = kGated && !kFirst ? of.factor : 1.0f;
            const float u = kFirst ? v[e] * of.factor : v[e];
            const float n = inverse * u;
            d_w[i][e] += d[e] * n * f;
            out[e] = n * f * w[i][e];
            const float d_u = inverse * (d[e] * w[i][e] * f - mean * u);
            d_g[e] = kFirst ? d_u * v[e] * of.slope : d[e] * n * w[i][e] * of.slope;
            v[e] = rest[e] + (kFirst ? d_u * of.factor : d_u);
          }
          store_run(static_cast<X*>(gradients.d_x) + row * shape.D + column, v);
          if constexpr (kSkip) {
            float scale[N], rows[N];
            load_run(skip.scale + column, scale);
            now.skip[r][i].unpack(rows);
#pragma unroll
            for (int e = 0; e < N; ++e) {
              d_s[i][e] += v[e] * rows[e];
              v[e] *= scale[e];
            }
            store_run(static_cast<T*>(gradients.d_skip) + row * shape.D + column, v);
          }
          if (gradients.y != nullptr) {
            store_run(static_cast<T*>(gradients.y) + row * shape.D + column, out);
          }
          if constexpr (kGated) {
            store_run(static_cast<T*>(gradients.d_gate) + gate_at + column, d_g);
          }
        }
      }
      of_row.advance(one, gate.heads);
    }
    place.advance(stride, gate.heads);
    now = next;
  }
  const auto over_groups = [&](const float(&own)[kVectors][N], float* sums) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * L::kRowLanes + lane) * N;
      if (column < shape.D) {
#pragma unroll
        for (int e = 0; e < N; ++e) {
          shared[group * shape.D + column + e] = own[i][e];
        }
      }
    }
    __syncthreads();
    for (int64_t column = threadIdx.x; column < shape.D; column += kThreads) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < L::kGroups; ++other) {
        sum += shared[other * shape.D + column];
      }
      sums[blockIdx.x * shape.D + column] = sum;
    }
  };
  let_next_start();
  over_groups(d_w, gradients.d_weight);
  if constexpr (kSkip) {
    __syncthreads();
    over_groups(d_s, gradients.d_scale);
  }
}

/// f(TypeTag<X>{}, std::integral_constant<Form, ...>) with the type of x.
template <class T, class F>
void with_form(bool float_x, const RmsNormGate& gate, const RmsNormSkip& skip, F&& f) {
  if (gate.data == nullptr) {
    constexpr std::integral_constant<Form, Form::kPlain> plain;
    return float_x ? f(TypeTag<float>{}, plain) : f(TypeTag<T>{}, plain);
  }
  switch (gate.gating) {
    case RmsNormGating::kSigmoid:
      return f(TypeTag<T>{}, std::integral_constant<Form, Form::kSigmoid>{});
    case RmsNormGating::kSilu:
      return f(TypeTag<T>{}, std::integral_constant<Form, Form::kSilu>{});
    case RmsNormGating::kSiluFirst:
      return skip.data != nullptr
                 ? f(TypeTag<T>{}, std::integral_constant<Form, Form::kSkipSiluFirst>{})
                 : f(TypeTag<T>{}, std::integral_constant<Form, Form::kSiluFirst>{});
  }
}

/// f(Layout<...>{}) with kRows rows at a time where a lane has one vector of each. Each layout of
/// each form is two kernels a type, seconds of compiling: rows gated after are heads', short, rows
/// gated first whole tokens', and others of them take the next wider layout.
template <int kRows, Form kForm, class F>
void with_layout(DType dtype, int64_t D, F&& f) {
  constexpr bool kOfHeads = kForm == Form::kSigmoid || kForm == Form::kSilu;
  constexpr bool kOfTokens = kForm == Form::kSiluFirst || kForm == Form::kSkipSiluFirst;
  if constexpr (!kOfTokens) {
    if (vectors_of(dtype, D, 1) <= 1) {
      return f(Layout<1, 1, kRows>{});
    }
    if (vectors_of(dtype, D, 1) <= 2) {
      return f(Layout<1, 2, (kRows + 1) / 2>{});
    }
  }
  if constexpr (!kOfHeads) {
    if (vectors_of(dtype, D, 4) <= 1) {
      return f(Layout<4, 1, kRows>{});
    }
    if (vectors_of(dtype, D, kWarps) <= 1) {
      return f(Layout<kWarps, 1, kRows>{});
    }
  }
  return f(Layout<kWarps, kMostVectors, (kRows + 1) / 2>{});
}

}  // namespace

std::string rms_norm_unsupported(DType dtype, int64_t D) {
  if (D % 8 != 0) {
    return "rows must have a multiple of 8 elements";
  }
  return vectors_of(dtype, D, kWarps) <= kMostVectors ? "" : "rows are too long";
}

size_t rms_norm_backward_workspace(int64_t rows, int64_t D) {
  return static_cast<size_t>(backward_blocks(rows) * 2 * D) * sizeof(float);
}

void rms_norm_forward(const RmsNormForward& call, Stream stream) {
  const Shape shape{.rows = call.rows, .D = call.D, .eps = static_cast<float>(call.eps)};
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_form<T>(call.float_x, call.gate, call.skip, [&](auto x, auto form) {
      using X = typename decltype(x)::Type;
      constexpr Form kForm = decltype(form)::value;
      with_layout<4, kForm>(call.dtype, call.D, [&](auto layout) {
        using L = decltype(layout);
        constexpr int64_t kBlockRows = L::kGroups * L::kRows;
        launch_early("launch of rms_norm_forward", rms_norm_forward_kernel<X, T, L, kForm>,
                     (call.rows + kBlockRows - 1) / kBlockRows, kThreads, 0,
                     static_cast<cudaStream_t>(stream), shape, static_cast<const X*>(call.x),
                     call.gate, call.skip, call.weight, static_cast<T*>(call.y));
      });
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
                            .d_skip = call.d_skip.data,
                            .y = call.y,
                            .d_weight = static_cast<float*>(call.workspace),
                            .d_scale = static_cast<float*>(call.workspace) + blocks * call.D};
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_form<T>(call.float_x, call.gate, call.skip, [&](auto x, auto form) {
      using X = typename decltype(x)::Type;
      constexpr Form kForm = decltype(form)::value;
      with_layout<2, kForm>(call.dtype, call.D, [&](auto layout) {
        using L = decltype(layout);
        // A skip is a fourth tensor: registers for one row at a time.
        using Rows = std::conditional_t<kForm == Form::kSkipSiluFirst,
                                        Layout<L::kRowWarps, L::kVectors, 1>, L>;
        launch("launch of rms_norm_backward", rms_norm_backward_kernel<X, T, Rows, kForm>, blocks,
               kThreads, static_cast<size_t>(L::kGroups * call.D) * sizeof(float), stream, shape,
               static_cast<const X*>(call.x), call.gate, call.skip, call.weight, gradients);
      });
    });
  });
  column_sums(gradients.d_weight, blocks, call.D, call.d_weight, stream);
  if (call.skip.data != nullptr) {
    column_sums(gradients.d_scale, blocks, call.D, call.d_skip.scale, stream);
  }
}

}  // namespace mdn::kernels::cuda
