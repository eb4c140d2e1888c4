// A step reads and writes every state once and does little else: it is a copy with arithmetic.
//
//     r = v - pi S k;  M <- mu M - eta r kᵀ;  S <- alpha S - beta M;  o = scale S q
//
// Without momentum M is no more than this token's -eta r kᵀ.
//
// A group of lanes owns a row of S and the row of M (16 columns a lane), float16 states two rows:
// so eight 16-byte loads are in flight a thread, nothing but q and k is shared, and the loads of
// the states are issued before anything waits.
#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/decode.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kColumnsPerLane = 16;
constexpr int kMaxThreads = 128;
constexpr int kMinThreads = 64;
constexpr float kLargestHalf = 65504.0f;

struct StepParams {
  const void* q;
  const void* k;
  const void* v;
  const float* alpha;
  const float* mu;  // null with M: without momentum
  const float* eta;
  const float* beta;
  const float* pi;
  void* S;
  void* M;
  const int64_t* slots;
  void* o;
  int64_t HV;
  int64_t group;  // value heads a query/key head
  int64_t V;
  int K;
  int tiles;  // blocks a head
  DType dtype;
  bool l2norm;
  bool vector;  // rows start on 16 bytes and K fills whole pieces
  float scale;
};

/// 16 bytes of a row of states.
template <typename State>
struct Piece;

template <>
struct Piece<float> {
  static constexpr int kWidth = 4;
  using Vector = float4;
  __device__ static void unpack(const Vector& from, float* x) {
    x[0] = from.x;
    x[1] = from.y;
    x[2] = from.z;
    x[3] = from.w;
  }
  __device__ static Vector pack(const float* x) { return make_float4(x[0], x[1], x[2], x[3]); }
  __device__ static float load(const float* from) { return *from; }
  __device__ static void store(float* to, float x) { *to = x; }
};

/// Float16 states saturate: a value past 65504 is stored as 65504, a NaN stays one.
template <>
struct Piece<__half> {
  static constexpr int kWidth = 8;
  using Vector = uint4;
  __device__ static float saturated(float x) {
    return fabsf(x) > kLargestHalf ? copysignf(kLargestHalf, x) : x;
  }
  __device__ static void unpack_two(unsigned bits, float* x) {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&bits));
    x[0] = two.x;
    x[1] = two.y;
  }
  __device__ static unsigned pack_two(const float* x) {
    const __half2 two = __floats2half2_rn(saturated(x[0]), saturated(x[1]));
    return *reinterpret_cast<const unsigned*>(&two);
  }
  __device__ static void unpack(const Vector& from, float* x) {
    unpack_two(from.x, x);
    unpack_two(from.y, x + 2);
    unpack_two(from.z, x + 4);
    unpack_two(from.w, x + 6);
  }
  __device__ static Vector pack(const float* x) {
    return make_uint4(pack_two(x), pack_two(x + 2), pack_two(x + 4), pack_two(x + 6));
  }
  __device__ static float load(const __half* from) { return __half2float(*from); }
  __device__ static void store(__half* to, float x) { *to = __float2half(saturated(x)); }
};

/// A lane's share of a row: pieces of 16 bytes, neighbouring lanes reading neighbouring pieces.
template <int kLanes, typename State>
struct Row {
  using P = Piece<State>;
  static constexpr int kPieces = kColumnsPerLane / P::kWidth;

  __device__ static int column(int piece, int lane) { return (piece * kLanes + lane) * P::kWidth; }

  using Pieces = typename P::Vector[kPieces];

  /// Issues the loads of a row that comes in whole pieces.
  __device__ static void fetch(const State* row, int K, int lane, bool inside, Pieces& pieces) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      pieces[i] = typename P::Vector{};
      if (inside && column(i, lane) < K) {
        pieces[i] = __ldcs(reinterpret_cast<const typename P::Vector*>(row + column(i, lane)));
      }
    }
  }

  /// The row as float32: from its pieces, or from memory where it does not come in pieces.
  __device__ static void read(const State* row, int K, int lane, bool vector, bool inside,
                              const Pieces& pieces, float (&x)[kColumnsPerLane]) {
    if (vector) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        P::unpack(pieces[i], &x[i * P::kWidth]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kColumnsPerLane; ++i) {
        const int at = column(i / P::kWidth, lane) + i % P::kWidth;
        x[i] = inside && at < K ? P::load(row + at) : 0.0f;
      }
    }
  }

  __device__ static void write(State* row, int K, int lane, bool vector,
                               const float (&x)[kColumnsPerLane]) {
    if (vector) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        if (column(i, lane) < K) {
          __stcs(reinterpret_cast<typename P::Vector*>(row + column(i, lane)),
                 P::pack(&x[i * P::kWidth]));
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < kColumnsPerLane; ++i) {
        const int at = column(i / P::kWidth, lane) + i % P::kWidth;
        if (at < K) {
          P::store(row + at, x[i]);
        }
      }
    }
  }

  /// The same columns of a row in shared memory.
  __device__ static void read_shared(const float* row, int lane, float (&x)[kColumnsPerLane]) {
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; i += 4) {
      const int at = column(i / P::kWidth, lane) + i % P::kWidth;
      const float4 four = *reinterpret_cast<const float4*>(row + at);
      x[i + 0] = four.x;
      x[i + 1] = four.y;
      x[i + 2] = four.z;
      x[i + 3] = four.w;
    }
  }
};

/// kRows: rows of S, and of M, that a group of lanes owns. Without kMomentum there is no M.
template <int kLanes, typename State, int kRows, bool kMomentum>
__global__ void __launch_bounds__(kMaxThreads) step_kernel(const StepParams p) {
  constexpr int kColumns = kLanes * kColumnsPerLane;
  __shared__ __align__(16) float q_shared[kColumns];
  __shared__ __align__(16) float k_shared[kColumns];
  __shared__ float squares[2][kMaxThreads / 32];
  using States = Row<kLanes, State>;

  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int lane = thread % kLanes;
  const int64_t head = blockIdx.x / p.tiles % p.HV;
  const int64_t b = blockIdx.x / p.tiles / p.HV;
  const int64_t first_row =
      (int64_t{blockIdx.x % p.tiles} * (threads / kLanes) + thread / kLanes) * kRows;
  const int64_t slot = p.slots ? p.slots[b] : b;
  if (slot < 0) {
    return;  // a padding row
  }

  const int64_t at = ((slot * p.HV + head) * p.V + first_row) * p.K;
  State* const S_rows = static_cast<State*>(p.S) + at;
  State* const M_rows = kMomentum ? static_cast<State*>(p.M) + at : nullptr;
  typename States::Pieces S_pieces[kRows];
  typename States::Pieces M_pieces[kRows];  // nothing without momentum
  if (p.vector) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool inside = first_row + i < p.V;
      States::fetch(S_rows + i * p.K, p.K, lane, inside, S_pieces[i]);
      if constexpr (kMomentum) {
        States::fetch(M_rows + i * p.K, p.K, lane, inside, M_pieces[i]);
      }
    }
  }

  const int64_t gate = b * p.HV + head;
  const float alpha = p.alpha[gate];
  const float mu = kMomentum ? p.mu[gate] : 0.0f;
  const float eta = p.eta[gate];
  const float beta = p.beta[gate];
  const float pi = p.pi[gate];
  const int64_t out = gate * p.V + first_row;
  float v[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    v[i] = first_row + i < p.V ? load_element(p.v, out + i, p.dtype) : 0.0f;
  }

  const int64_t from = (b * (p.HV / p.group) + head / p.group) * p.K;
  float q_squares = 0.0f;
  float k_squares = 0.0f;
  for (int i = thread; i < kColumns; i += threads) {
    const float q_i = i < p.K ? load_element(p.q, from + i, p.dtype) : 0.0f;
    const float k_i = i < p.K ? load_element(p.k, from + i, p.dtype) : 0.0f;
    q_shared[i] = q_i;
    k_shared[i] = k_i;
    q_squares += q_i * q_i;
    k_squares += k_i * k_i;
  }
  if (p.l2norm) {
    q_squares = sum_of_lanes<32>(q_squares);
    k_squares = sum_of_lanes<32>(k_squares);
    if (thread % 32 == 0) {
      squares[0][thread / 32] = q_squares;
      squares[1][thread / 32] = k_squares;
    }
  }
  __syncthreads();
  float q_inverse = 1.0f;  // 1 / the norms: applied to the sums, not to q and k
  float k_inverse = 1.0f;
  if (p.l2norm) {
    float q_sum = 0.0f;
    float k_sum = 0.0f;
    for (int warp = 0; warp < threads / 32; ++warp) {
      q_sum += squares[0][warp];
      k_sum += squares[1][warp];
    }
    q_inverse = 1.0f / sqrtf(q_sum + static_cast<float>(kL2NormEps));
    k_inverse = 1.0f / sqrtf(k_sum + static_cast<float>(kL2NormEps));
  }

#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const bool inside = first_row + row < p.V;
    float S[kColumnsPerLane];
    float M[kColumnsPerLane];
    float x[kColumnsPerLane];
    States::read(S_rows + row * p.K, p.K, lane, p.vector, inside, S_pieces[row], S);
    if constexpr (kMomentum) {
      States::read(M_rows + row * p.K, p.K, lane, p.vector, inside, M_pieces[row], M);
    }
    States::read_shared(k_shared, lane, x);
    float prediction = 0.0f;  // S k
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i) {
      prediction += S[i] * x[i];
    }
    prediction = sum_of_lanes<kLanes>(prediction) * k_inverse;
    const float write = eta * (v[row] - pi * prediction) * k_inverse;  // eta r
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i) {  // M = mu M - eta r k; S = alpha S - beta M
      if constexpr (kMomentum) {
        M[i] = mu * M[i] - write * x[i];
      } else {
        M[i] = -write * x[i];
      }
      S[i] = alpha * S[i] - beta * M[i];
    }
    if (inside) {
      States::write(S_rows + row * p.K, p.K, lane, p.vector, S);
      if constexpr (kMomentum) {
        States::write(M_rows + row * p.K, p.K, lane, p.vector, M);
      }
    }
    States::read_shared(q_shared, lane, x);
    float o = 0.0f;
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i) {
      o += S[i] * x[i];
    }
    o = sum_of_lanes<kLanes>(o) * p.scale * q_inverse;
    if (inside && lane == 0) {
      store_element(p.o, out + row, p.dtype, o);
    }
  }
}

/// Whether blocks of `rows` rows are at least four a multiprocessor.
bool fills(int64_t heads, int64_t V, int rows, int multiprocessors) {
  return heads * ((V + rows - 1) / rows) >= 4 * int64_t{multiprocessors};
}

/// The largest block that still fills the device; small batches get small blocks.
template <int kLanes, typename State, int kRows, bool kMomentum>
void launch_rows(StepParams p, int64_t heads, const DeviceFacts& device, cudaStream_t stream) {
  const auto rows = [](int threads) { return threads / kLanes * kRows; };
  int threads = kMaxThreads;
  while (threads > kMinThreads && !fills(heads, p.V, rows(threads), device.multiprocessors)) {
    threads /= 2;
  }
  p.tiles = static_cast<int>((p.V + rows(threads) - 1) / rows(threads));
  launch("launch of momentum_delta_rule step", step_kernel<kLanes, State, kRows, kMomentum>,
         heads * p.tiles, threads, 0, stream, p);
}

/// Rows that fill a thread's eight loads, where there are enough of them.
template <int kLanes, typename State, bool kMomentum>
void launch_step(StepParams p, int64_t heads, const DeviceFacts& device, cudaStream_t stream) {
  constexpr int kRows = 8 / Row<kLanes, State>::kPieces / (kMomentum ? 2 : 1);
  if (fills(heads, p.V, kMaxThreads / kLanes * kRows, device.multiprocessors)) {
    launch_rows<kLanes, State, kRows, kMomentum>(p, heads, device, stream);
  } else {
    launch_rows<kLanes, State, 1, kMomentum>(p, heads, device, stream);
  }
}

template <typename State, bool kMomentum>
void launch_step(StepParams p, int64_t heads, const DeviceFacts& device, cudaStream_t stream) {
  p.vector = p.K % Piece<State>::kWidth == 0 && reinterpret_cast<uintptr_t>(p.S) % 16 == 0 &&
             reinterpret_cast<uintptr_t>(p.M) % 16 == 0;
  if (p.K <= 4 * kColumnsPerLane) {
    launch_step<4, State, kMomentum>(p, heads, device, stream);
  } else if (p.K <= 8 * kColumnsPerLane) {
    launch_step<8, State, kMomentum>(p, heads, device, stream);
  } else if (p.K <= 16 * kColumnsPerLane) {
    launch_step<16, State, kMomentum>(p, heads, device, stream);
  } else {
    static_assert(32 * kColumnsPerLane == kPortableMaxChannels);
    launch_step<32, State, kMomentum>(p, heads, device, stream);
  }
}

template <bool kMomentum>
void launch_step(const StepParams& p, DType state_dtype, int64_t heads, const DeviceFacts& device,
                 cudaStream_t stream) {
  if (state_dtype == DType::kFloat16) {
    launch_step<__half, kMomentum>(p, heads, device, stream);
  } else {
    launch_step<float, kMomentum>(p, heads, device, stream);
  }
}

}  // namespace

void decode_step(const MomentumDeltaRuleStep& call, const DeviceFacts& device,
                 cudaStream_t stream) {
  const auto gate = [](const void* x) { return static_cast<const float*>(x); };
  StepParams p{};
  p.q = call.q;
  p.k = call.k;
  p.v = call.v;
  p.alpha = gate(call.alpha);
  p.mu = gate(call.mu);
  p.eta = gate(call.eta);
  p.beta = gate(call.beta);
  p.pi = gate(call.pi ? call.pi : call.alpha);
  p.S = call.S;
  p.M = call.M;
  p.slots = call.slots;
  p.o = call.o;
  p.HV = call.HV;
  p.group = call.HV / call.H;
  p.V = call.V;
  p.K = static_cast<int>(call.K);
  p.dtype = call.dtype;
  p.l2norm = call.l2norm;
  p.scale = static_cast<float>(call.scale);
  if (call.M != nullptr) {
    launch_step<true>(p, call.state_dtype, call.B * call.HV, device, stream);
  } else {
    launch_step<false>(p, call.state_dtype, call.B * call.HV, device, stream);
  }
}

}  // namespace mdn::kernels::cuda
