// What the portable kernels that walk over tokens share: the tile of 16 tokens in shared memory,
// and rows of states spread over a group of lanes.
//
// Row v of S ([V, K] layout) meets no other row: with k, q and the gates of a token it needs only
// its own v_t. So kLanes lanes own a row of S and the same row of M, 16 columns a lane, in
// registers for the whole walk; a block owns kBlockRows rows of one head and shares the tokens' q
// and k.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/half.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_plan.h"

namespace mdn::kernels::cuda::portable {

inline constexpr int kThreads = 128;
inline constexpr int kRowsPerGroup = 2;     // so that a read of q or k serves two rows
inline constexpr int kColumnsPerLane = 16;  // four pieces of four neighbouring columns

template <int kLanes>
inline constexpr int kColumns = kLanes* kColumnsPerLane;  // K is filled up with zeros to this
template <int kLanes>
inline constexpr int kBlockRows = kThreads / kLanes* kRowsPerGroup;

/// Inputs of a walk: [B, T, ...] tensors as in the contract.
struct Tokens {
  const void* q;
  const void* k;
  const void* v;  // or d_o, in the walk back
  const float* alpha;
  const float* mu;  // null: 0
  const float* eta;
  const float* beta;
  const float* pi;  // alpha where the call has none
  DType dtype;
  bool l2norm;
  float scale;
  int64_t H;
  int64_t HV;
  int64_t K;
  int64_t V;
};

/// 16 tokens of one head.
template <int kLanes>
struct Tile {
  float q[kPortableChunk][kColumns<kLanes>];
  float k[kPortableChunk][kColumns<kLanes>];
  float v[kPortableChunk][kBlockRows<kLanes>];
  float alpha[kPortableChunk];
  float mu[kPortableChunk];
  float eta[kPortableChunk];
  float beta[kPortableChunk];
  float pi[kPortableChunk];
};

/// Loads `length` tokens from `token` on of value head `head`, q and k normalised where the call
/// says so. Starts and ends with a barrier.
template <int kLanes>
__device__ void load_tile(const Tokens& x, int64_t token, int length, int64_t head, int64_t row0,
                          Tile<kLanes>& tile) {
  constexpr int kWidth = kColumns<kLanes>;
  constexpr int kRows = kBlockRows<kLanes>;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t qk_head = head / (x.HV / x.H);
  __syncthreads();
#pragma unroll 4
  for (int i = thread; i < length * kWidth; i += kThreads) {
    const int t = i / kWidth;
    const int column = i % kWidth;
    const int64_t at = ((token + t) * x.H + qk_head) * x.K + column;
    const bool inside = column < x.K;
    tile.q[t][column] = inside ? load_element(x.q, at, x.dtype) : 0.0f;
    tile.k[t][column] = inside ? load_element(x.k, at, x.dtype) : 0.0f;
  }
  for (int i = thread; i < length * kRows; i += kThreads) {
    const int t = i / kRows;
    const int64_t row = row0 + i % kRows;
    const int64_t at = ((token + t) * x.HV + head) * x.V + row;
    tile.v[t][i % kRows] = row < x.V ? load_element(x.v, at, x.dtype) : 0.0f;
  }
  if (thread < length) {
    const int64_t at = (token + thread) * x.HV + head;
    tile.alpha[thread] = x.alpha[at];
    tile.mu[thread] = x.mu != nullptr ? x.mu[at] : 0.0f;
    tile.eta[thread] = x.eta[at];
    tile.beta[thread] = x.beta[at];
    tile.pi[thread] = x.pi[at];
  }
  __syncthreads();
  if (x.l2norm) {  // x / sqrt(sum x² + eps), a warp a row
    for (int i = thread / 32; i < 2 * length; i += kThreads / 32) {
      float* row = i < length ? tile.q[i] : tile.k[i - length];
      float sum = 0.0f;
      for (int column = thread % 32; column < kWidth; column += 32) {
        sum += row[column] * row[column];
      }
      const float inverse = 1.0f / sqrtf(sum_of_lanes<32>(sum) + static_cast<float>(kL2NormEps));
      for (int column = thread % 32; column < kWidth; column += 32) {
        row[column] *= inverse;
      }
    }
    __syncthreads();
  }
}

/// A lane's share of a row: piece p holds columns p * 4 * kLanes + 4 * lane + (0..3), so that the
/// lanes of a group read 16 neighbouring bytes each.
template <int kLanes>
__device__ inline int first_column(int piece, int lane) {
  return (piece * kLanes + lane) * 4;
}

template <int kLanes>
__device__ inline void read_shared(const float* row, int lane, float (&x)[kColumnsPerLane]) {
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {
    const float4 four = *reinterpret_cast<const float4*>(row + first_column<kLanes>(piece, lane));
    x[4 * piece + 0] = four.x;
    x[4 * piece + 1] = four.y;
    x[4 * piece + 2] = four.z;
    x[4 * piece + 3] = four.w;
  }
}

/// Reads a lane's share of a row of K floats; `vector`: rows start on 16 bytes.
template <int kLanes>
__device__ inline void read_row(const float* row, int K, int lane, bool vector,
                                float (&x)[kColumnsPerLane]) {
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {
    const int column = first_column<kLanes>(piece, lane);
    if (vector) {  // K is a multiple of 4
      float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (column < K) {
        four = *reinterpret_cast<const float4*>(row + column);
      }
      x[4 * piece + 0] = four.x;
      x[4 * piece + 1] = four.y;
      x[4 * piece + 2] = four.z;
      x[4 * piece + 3] = four.w;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[4 * piece + i] = column + i < K ? row[column + i] : 0.0f;
      }
    }
  }
}

template <int kLanes>
__device__ inline void write_row(float* row, int K, int lane, bool vector,
                                 const float (&x)[kColumnsPerLane]) {
#pragma unroll
  for (int piece = 0; piece < 4; ++piece) {
    const int column = first_column<kLanes>(piece, lane);
    if (vector) {
      if (column < K) {
        *reinterpret_cast<float4*>(row + column) =
            make_float4(x[4 * piece], x[4 * piece + 1], x[4 * piece + 2], x[4 * piece + 3]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (column + i < K) {
          row[column + i] = x[4 * piece + i];
        }
      }
    }
  }
}

/// The rows of a group: kRowsPerGroup neighbouring rows of one of S, M, dS, dM.
template <int kLanes>
struct Rows {
  float x[kRowsPerGroup][kColumnsPerLane];

  /// `state`: [V, K] of the head, or null: zeros.
  __device__ void read(const float* state, int64_t row, const Tokens& t, int lane, bool vector) {
#pragma unroll
    for (int r = 0; r < kRowsPerGroup; ++r) {
      if (state != nullptr && row + r < t.V) {
        read_row<kLanes>(state + (row + r) * t.K, static_cast<int>(t.K), lane, vector, x[r]);
      } else {
#pragma unroll
        for (int i = 0; i < kColumnsPerLane; ++i) {
          x[r][i] = 0.0f;
        }
      }
    }
  }

  __device__ void write(float* state, int64_t row, const Tokens& t, int lane, bool vector) const {
#pragma unroll
    for (int r = 0; r < kRowsPerGroup; ++r) {
      if (row + r < t.V) {
        write_row<kLanes>(state + (row + r) * t.K, static_cast<int>(t.K), lane, vector, x[r]);
      }
    }
  }

  /// Row r times a vector spread over the lanes in the same way; every lane gets the sum.
  __device__ float dot(int r, const float (&y)[kColumnsPerLane]) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kColumnsPerLane; ++i) {
      sum += x[r][i] * y[i];
    }
    return sum_of_lanes<kLanes>(sum);
  }
};

/// Where a walk's blocks are: block = (unit * HV + head) * tiles + tile, so that the tiles of one
/// head, which read the same q and k, run together.
struct BlockPlace {
  int64_t unit;
  int64_t head;
  int64_t row0;

  __device__ BlockPlace(int64_t HV, int64_t tiles, int block_rows) {
    const int64_t block = blockIdx.x;
    row0 = block % tiles * block_rows;
    head = block / tiles % HV;
    unit = block / tiles / HV;
  }
};

inline Tokens make_tokens(const MomentumDeltaRuleProblem& problem,
                          const MomentumDeltaRuleInputs& inputs, const void* v) {
  const auto gate = [](const void* x) { return static_cast<const float*>(x); };
  return {inputs.q,
          inputs.k,
          v,
          gate(inputs.alpha),
          gate(inputs.mu),
          gate(inputs.eta),
          gate(inputs.beta),
          gate(inputs.pi ? inputs.pi : inputs.alpha),
          problem.dtype,
          problem.l2norm,
          static_cast<float>(problem.scale),
          problem.H,
          problem.HV,
          problem.K,
          problem.V};
}

/// Whether rows of K floats of all these tensors (or nulls) start on 16 bytes.
inline bool rows_are_aligned(int64_t K, std::initializer_list<const void*> tensors) {
  bool aligned = K % 4 == 0;
  for (const void* tensor : tensors) {
    aligned = aligned && reinterpret_cast<uintptr_t>(tensor) % 16 == 0;
  }
  return aligned;
}

/// Blocks (of one head's rows) a row and window needs: where sequences are packed, any chunk of the
/// window may be the first or last of its sequence there, and the others' blocks return at once.
inline int64_t walks_per_row(const MomentumDeltaRuleProblem& problem, const PortablePlan& plan) {
  return problem.cu_seqlens ? plan.window : 1;
}

/// Calls body(integral constant) with the lanes a row of K columns is spread over.
template <typename Body>
void with_lanes(int64_t K, Body&& body) {
  if (K <= kColumns<4>) {
    body(std::integral_constant<int, 4>());
  } else if (K <= kColumns<8>) {
    body(std::integral_constant<int, 8>());
  } else if (K <= kColumns<16>) {
    body(std::integral_constant<int, 16>());
  } else {
    body(std::integral_constant<int, 32>());
  }
}

}  // namespace mdn::kernels::cuda::portable
