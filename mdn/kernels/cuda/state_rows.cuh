// What single-token steps over states share. A step reads and writes every state once and does
// little else: it is a copy with arithmetic.
//
// A warp owns a few neighbouring rows, and each of its loads and stores is of 512 neighbouring
// bytes. A block is one warp: no warp waits for another, neither at a barrier nor for its place on
// the multiprocessor. The loads of all states are issued before anything waits.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/half.cuh"
#include "mdn/kernels/cuda/vectors.cuh"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

inline constexpr int kStepThreads = 32;
inline constexpr int kStepMaxChannels = 512;

/// Sizes of a step, and what it reads of a token: q, k [B, HV / group, K], v, o [B, HV, V]. States
/// are pools [slots, HV, V, K].
struct StateRows {
  const void* q;
  const void* k;
  const void* v;
  void* o;
  const int64_t* slots;  // [B]; null: b
  unsigned HV;
  unsigned group;      // value heads a query/key head
  unsigned tiles = 0;  // blocks a head; filled in by with_tile
  int V;
  int K;
  DType dtype;
  bool l2norm;
  bool vector;         // rows of states start on 16 bytes and K fills whole pieces
  bool whole_columns;  // so do those of q and k
  float scale;
};

/// 16 bytes of a row of states.
template <typename State>
struct Piece;

template <>
struct Piece<float> {
  static constexpr int kWidth = 4;
  using Vector = float4;
  __device__ static void unpack(const Vector& from, float (&x)[kWidth]) {
    x[0] = from.x;
    x[1] = from.y;
    x[2] = from.z;
    x[3] = from.w;
  }
  __device__ static Vector pack(const float (&x)[kWidth]) {
    return make_float4(x[0], x[1], x[2], x[3]);
  }
};

/// Float16 states saturate: half.cuh.
template <>
struct Piece<__half> {
  static constexpr int kWidth = 8;
  using Vector = uint4;
  __device__ static void unpack(const Vector& from, float (&x)[kWidth]) {
    const unsigned words[4] = {from.x, from.y, from.z, from.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&words[i]));
      x[2 * i] = two.x;
      x[2 * i + 1] = two.y;
    }
  }
  __device__ static Vector pack(const float (&x)[kWidth]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 two = __floats2half2_rn(within_half(x[2 * i]), within_half(x[2 * i + 1]));
      words[i] = *reinterpret_cast<const unsigned*>(&two);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
};

/// The rows of one warp: kLanes lanes share a row, kPieces pieces each, and a lane has kSteps rows.
/// kWhole: the pieces of the lanes are a row, tiles of rows are a head and everything is aligned,
/// so that nothing is asked for; the instructions for what is asked would take as long as the
/// memory.
template <int kLanes_, int kPieces_, typename State_, int kSteps_, bool kWhole>
struct StateTile {
  static constexpr int kLanes = kLanes_, kPieces = kPieces_, kSteps = kSteps_;
  using State = State_;
  using P = Piece<State>;
  using Vector = typename P::Vector;
  static constexpr int kWidth = P::kWidth;
  static constexpr int kAtOnce = kStepThreads / kLanes;  // rows
  static constexpr int kRows = kSteps * kAtOnce;
  using Columns = float[kPieces][kWidth];  // of a lane, in a row

  const StateRows& p;
  int K;
  int lane;       // of its row
  int first;      // the lane's first row in its head
  unsigned gate;  // b HV + head
  int64_t at;     // the lane's first row in a pool; -1: of a padding row of the batch

  __device__ explicit StateTile(const StateRows& rows) : p(rows) {
    K = kWhole ? kLanes * kPieces * kWidth : p.K;
    lane = static_cast<int>(threadIdx.x) % kLanes;
    const int group = static_cast<int>(threadIdx.x) / kLanes;
    gate = blockIdx.x / p.tiles;
    first = static_cast<int>((blockIdx.x - gate * p.tiles) * kRows) + group;
    if (kWhole && p.slots == nullptr) {
      at = (int64_t{blockIdx.x} * kRows + group) * K;
    } else {
      const unsigned b = gate / p.HV, head = gate - b * p.HV;
      const int64_t slot = p.slots ? p.slots[b] : b;
      at = slot < 0 ? -1 : ((slot * p.HV + head) * p.V + first) * K;
    }
  }

  __device__ int column(int piece) const { return (piece * kLanes + lane) * kWidth; }
  __device__ bool inside(int step) const { return kWhole || first + step * kAtOnce < p.V; }

  /// The pieces of a row of K numbers that are this lane's, zeros past K.
  __device__ void load_row(const State* row, Vector (&pieces)[kPieces]) const {
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      if (kWhole || (p.vector && column(j) < K)) {
        pieces[j] = __ldcs(reinterpret_cast<const Vector*>(row + column(j)));
      } else {
        float x[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          x[i] = column(j) + i < K ? to_float(row[column(j) + i]) : 0.0f;
        }
        pieces[j] = P::pack(x);
      }
    }
  }

  __device__ void load(const void* pool, Vector (&pieces)[kSteps][kPieces]) const {
    const State* const rows = static_cast<const State*>(pool) + at;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      if (inside(i)) {
        load_row(rows + int64_t{i} * kAtOnce * K, pieces[i]);
      } else {
#pragma unroll
        for (int j = 0; j < kPieces; ++j) {
          pieces[i][j] = Vector{};
        }
      }
    }
  }

  /// A row's piece; only of a row inside.
  __device__ void store(void* pool, int step, int piece, const float (&x)[kWidth]) const {
    State* const row = static_cast<State*>(pool) + at + int64_t{step} * kAtOnce * K;
    const Vector packed = P::pack(x);
    if (kWhole || (p.vector && column(piece) < K)) {
      __stcs(reinterpret_cast<Vector*>(row + column(piece)), packed);
    } else if (!p.vector) {
      const auto* elements = reinterpret_cast<const State*>(&packed);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        if (column(piece) + i < K) {
          row[column(piece) + i] = elements[i];
        }
      }
    }
  }

  /// q and k of the lane's columns and v of its rows as they lie in memory, in whole words.
  struct Token {
    uint32_t q[kPieces][kWidth], k[kPieces][kWidth], v[kSteps];
  };

  __device__ void load(Token& token) const {
    if (p.dtype == DType::kFloat32) {
      load_as<uint32_t>(token);
    } else {
      load_as<uint16_t>(token);
    }
  }

  /// The first that waits for a token.
  __device__ void unpack(const Token& token, Columns& q, Columns& k, float (&v)[kSteps]) const {
    if (p.dtype == DType::kBFloat16) {
      unpack_as<__nv_bfloat16>(token, q, k, v);
    } else if (p.dtype == DType::kFloat16) {
      unpack_as<__half>(token, q, k, v);
    } else {
      unpack_as<float>(token, q, k, v);
    }
  }

  /// What q and k are multiplied by: scale and, with l2norm, the inverses of their norms.
  __device__ float2 factors(const Columns& q, const Columns& k) const {
    float2 factor = make_float2(p.scale, 1.0f);
    if (p.l2norm) {
      constexpr auto kEps = static_cast<float>(kL2NormEps);
      factor.x *= rsqrtf(sum_of_lanes<kLanes>(dot(q, q)) + kEps);
      factor.y = rsqrtf(sum_of_lanes<kLanes>(dot(k, k)) + kEps);
    }
    return factor;
  }

  /// Of this lane's columns.
  __device__ static float dot(const Columns& x, const Columns& y) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        sum += x[j][i] * y[j][i];
      }
    }
    return sum;
  }

  /// o of the rows.
  __device__ void store_o(const float (&o)[kSteps]) const {
    if (lane != 0) {
      return;
    }
    const int64_t out = int64_t{gate} * p.V + first;
    const auto store = [&]<class T>(T* to) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        if (inside(i)) {
          to[out + i * kAtOnce] =
              from_float<T>(std::is_same_v<T, __half> ? within_half(o[i]) : o[i]);
        }
      }
    };
    if (p.dtype == DType::kBFloat16) {
      store(static_cast<__nv_bfloat16*>(p.o));
    } else if (p.dtype == DType::kFloat16) {
      store(static_cast<__half*>(p.o));
    } else {
      store(static_cast<float*>(p.o));
    }
  }

 private:
  template <class Bits>
  __device__ void load_as(Token& token) const {
    const int64_t key_row = int64_t{p.group == 1 ? gate : gate / p.group} * K;
    const Bits* const q_row = static_cast<const Bits*>(p.q) + key_row;
    const Bits* const k_row = static_cast<const Bits*>(p.k) + key_row;
    const Bits* const v_rows = static_cast<const Bits*>(p.v) + int64_t{gate} * p.V + first;
    const auto load_columns = [&](const Bits* row, int from, uint32_t(&words)[kWidth]) {
      Run<Bits, kWidth> run;
      run.clear();
      if (kWhole || (p.whole_columns && from < K)) {
        run.load(row + from);
      } else if (!p.whole_columns) {
        Bits columns[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          columns[i] = from + i < K ? row[from + i] : Bits{0};
        }
        memcpy(run.words, columns, sizeof(columns));
      }
      memcpy(words, run.words, sizeof(run.words));
    };
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      load_columns(q_row, column(j), token.q[j]);
      load_columns(k_row, column(j), token.k[j]);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      token.v[i] = inside(i) ? v_rows[i * kAtOnce] : Bits{0};
    }
  }

  template <class T>
  __device__ void unpack_as(const Token& token, Columns& q, Columns& k, float (&v)[kSteps]) const {
    const auto columns = [](const uint32_t(&words)[kWidth], float(&x)[kWidth]) {
      Run<T, kWidth> run;
      memcpy(run.words, words, sizeof(run.words));
      run.unpack(x);
    };
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      columns(token.q[j], q[j]);
      columns(token.k[j], k[j]);
    }
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      T value;
      memcpy(&value, &token.v[i], sizeof(value));
      v[i] = to_float(value);
    }
  }
};

inline bool starts_on_piece(const void* x) {
  return reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

/// Of a step's call. `rows`: what is read in pieces besides q and k, or null.
template <typename Call>
StateRows state_rows(const Call& call, std::initializer_list<const void*> rows) {
  return {.q = call.q,
          .k = call.k,
          .v = call.v,
          .o = call.o,
          .slots = call.slots,
          .HV = static_cast<unsigned>(call.HV),
          .group = static_cast<unsigned>(call.HV / call.H),
          .V = static_cast<int>(call.V),
          .K = static_cast<int>(call.K),
          .dtype = call.dtype,
          .l2norm = call.l2norm,
          .vector = std::all_of(rows.begin(), rows.end(), starts_on_piece),
          .whole_columns = call.K % 8 == 0 && starts_on_piece(call.q) && starts_on_piece(call.k),
          .scale = static_cast<float>(call.scale)};
}

/// Calls queue(TypeTag<StateTile>, rows) with the tile for a step over kPools pools of `State` and
/// `heads` = B HV heads: as many rows a warp as fill a lane's loads, where that leaves four warps a
/// multiprocessor.
template <typename State, int kPools, typename Queue>
void with_tile(StateRows rows, int64_t heads, const Queue& queue) {
  constexpr int kWidth = Piece<State>::kWidth;
  constexpr int kLoads = 8;     // of 16 bytes, on their way for a lane
  constexpr int kFewSteps = 2;  // rows of a lane where there are few
  rows.vector = rows.vector && rows.K % kWidth == 0;
  const auto with_steps = [&]<int kLanes, int kPieces, int kSteps>() {
    using Whole = StateTile<kLanes, kPieces, State, kSteps, true>;
    using Any = StateTile<kLanes, kPieces, State, kSteps, false>;
    constexpr int kColumns = kLanes * kPieces * kWidth;
    rows.tiles = static_cast<unsigned>((rows.V + Any::kRows - 1) / Any::kRows);
    if constexpr (kColumns == 128 || kColumns == 256) {  // the published sizes
      if (rows.K == kColumns && rows.V % Any::kRows == 0 && rows.vector && rows.whole_columns) {
        return queue(TypeTag<Whole>{}, rows);
      }
    }
    queue(TypeTag<Any>{}, rows);
  };
  const auto with_lanes = [&]<int kLanes, int kPieces>() {
    constexpr int kSteps = kLoads / kPieces / kPools;
    constexpr int kRows = kSteps * kStepThreads / kLanes;
    if constexpr (kSteps > kFewSteps) {
      const int64_t warps = heads * ((rows.V + kRows - 1) / kRows);
      if (warps < 4 * int64_t{device_facts().multiprocessors}) {
        return with_steps.template operator()<kLanes, kPieces, kFewSteps>();
      }
    }
    with_steps.template operator()<kLanes, kPieces, kSteps>();
  };
  if (rows.K <= 8 * kWidth) {
    with_lanes.template operator()<8, 1>();
  } else if (rows.K <= 16 * kWidth) {
    with_lanes.template operator()<16, 1>();
  } else if (rows.K <= 32 * kWidth) {
    with_lanes.template operator()<32, 1>();
  } else if (rows.K <= 64 * kWidth) {
    with_lanes.template operator()<32, 2>();
  } else if constexpr (kWidth == 4) {
    static_assert(128 * kWidth == kStepMaxChannels);
    with_lanes.template operator()<32, 4>();
  } else {
    static_assert(64 * kWidth == kStepMaxChannels);
  }
}

}  // namespace mdn::kernels::cuda
