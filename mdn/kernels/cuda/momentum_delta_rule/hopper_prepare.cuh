// Prepare: everything of a chunk that does not depend on the states. Writes the records of
// hopper_saved.h. A block takes one (chunk, query/key head) after another (hopper_progress.cuh),
// and asks for the next one's gates, q and k while it works.
//
//   1. the masks H and G, while the copy engine brings q and k: the recurrence inside blocks of 16
//      tokens, rank two beyond (only products and sums of non-negative numbers: no logarithm,
//      division or difference)
//   2. P = Q K^T and K K^T by wgmma, raw rows; the L2 norms are folded in as factors of rows and
//      columns
//   3. A = I + (H o KK^T) D in shared memory, inverted there in fp32: substitution in 16 x 16
//      blocks, then merges 16 -> 32 -> 64
//   4. T and PGD rounded to fp16, and written with the vectors
//
// With several value heads to a query/key head the scores are made once, the rest is repeated.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/parts/tile.cuh"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/tensor_map.h"
#include "mdn/kernels/cuda/ptx/thread.cuh"
#include "mdn/kernels/cuda/ptx/tma.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::hopper {

struct PrepareParams {
  const Chunk* chunks;
  const float* alpha;  // gates [tokens, HV]
  const float* mu;     // null: 0
  const float* eta;
  const float* beta;
  const float* pi;  // null: alpha
  char* records;
  Progress* progress;
  ItemOrder order;
  int group;  // value heads a query/key head
  float scale;
  bool l2norm;
};

inline constexpr int kPrepareThreads = 128;
inline constexpr int kBlockTokens = 16;                // of the mask recurrence and the inverse
inline constexpr int kBlocks = kChunk / kBlockTokens;  // 4
inline constexpr int kColumnM = kChunk;                // the initial M as a column of the masks
inline constexpr int kColumnS = kChunk + 1;            // the initial S
inline constexpr int kStrideA = kChunk + 4;            // floats a row of A: no bank conflicts
inline constexpr int kLaneM = kBlockTokens;            // lanes of the mask recurrence: the M and
inline constexpr int kLaneS = kBlockTokens + 1;        // the S that the block starts with
inline constexpr int kMaxScaleExponent = 8;            // 2^8 g and 2^8 n still fit fp16
inline constexpr float kLargestHalf = 65504.0f;

/// Gates of the chunk, neutral past its end.
struct ChunkGates {
  float alpha[kChunk];
  float mu[kChunk];
  float eta[kChunk];
  float beta[kChunk];
  float pi[kChunk];
};

/// The masks in factored form: inside a block by element, beyond it through the row at the end of
/// the block before. Inside a block H[t, j] = pi_t G[t-1, j].
struct ChunkMasks {
  float G[kChunk][kBlockTokens + 8];  // G[t, j] for j in t's block, 0 for j > t; no bank conflicts
  float a[kChunk + 1];                // of t in its block: a'_t, b'_t, c'_t, e'_t, m'_t; two of
  float b[kChunk + 1];                // them are written at once, to different banks
  float c[kChunk + 1];
  float e[kChunk + 1];
  float m[kChunk];
  alignas(16) float end_G[kBlocks][kChunk + 4];  // row of G at the end of each block, all columns
  float end_Mu[kBlocks][kChunk + 4];
};

/// Shared memory. The q and k tiles are read by wgmma only; what comes after the scores lies over
/// them, and the T of the record over A.
template <int K>
struct PrepareShared {
  struct After {
    union {
      float A[kChunk][kStrideA];
      char T[ptx::kBoxBytes];
    };
    alignas(128) char PGD[ptx::kBoxBytes];
    ChunkVectors vectors;
  };
  union {
    alignas(1024) char tiles[2][K / 64][ptx::kBoxBytes];  // q, k
    After after;
  };
  ChunkMasks masks;
  ChunkGates gates[2];  // of this item and the next
  Chunk chunks[2];
  float rq[kChunk];
  float rk[kChunk];
  float largest[kPrepareThreads / 32];      // |T| of a warp
  float largest_row[kPrepareThreads / 32];  // sum of |T| over a row
  float largest_write[kChunk / 32];         // g or n
  Item items[2];
  int unpublished;  // index of the last record while it is not yet said to be there, else -1
  bool helps_only;  // all items that are everyone's are taken
  uint64_t loaded;
};

/// rq of the chunk's rows: 1 / sqrt(sum q^2 + 1e-6), or 1; 0 past the end. Two threads a row.
template <class T, int K>
__device__ __forceinline__ void query_norms(PrepareShared<K>& shared, int length, bool l2norm,
                                            int thread) {
  const int row = thread / 2;
  float sums[2] = {0, 0};
  if (l2norm) {
#pragma unroll
    for (int box = 0; box < K / 64; ++box) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int unit = 4 * (thread % 2) + i;
        const uint4 words = *reinterpret_cast<const uint4*>(&shared.tiles[0][box][row * 128] +
                                                            ((unit ^ (row % 8)) * 16));
        for (const uint32_t word : {words.x, words.y, words.z, words.w}) {
          const float2 x = ptx::unpack<T>(word);
          sums[0] = fmaf(x.x, x.x, sums[0]);
          sums[1] = fmaf(x.y, x.y, sums[1]);
        }
      }
    }
  }
  const float sum = sum_of_lanes<2>(sums[0] + sums[1]);
  if (thread % 2 == 0) {
    const float norm = l2norm ? rsqrtf(sum + static_cast<float>(kL2NormEps)) : 1.0f;
    shared.rq[row] = row < length ? norm : 0.0f;
  }
}

/// rk likewise, from the diagonal of K K^T.
template <int K>
__device__ __forceinline__ void key_norms(PrepareShared<K>& shared, const float (&KK)[32],
                                          int length, bool l2norm, int warp, int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = 0;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int at = 4 * (2 * block + i) + 2 * i;
      sum = block == warp ? (lane / 4 % 2 == 0 ? KK[at] : KK[at + 1]) : sum;
    }
    if (lane % 4 == lane / 8) {
      const int row = warp * kBlockTokens + lane / 4 + 8 * i;
      const float norm = l2norm ? rsqrtf(sum + static_cast<float>(kL2NormEps)) : 1.0f;
      shared.rk[row] = row < length ? norm : 0.0f;
    }
  }
}

/// Asks for the gates of the warp's own block of tokens, a lane a token; neutral past the chunk's
/// end. They are there after ptx::async_copy_wait and __syncwarp.
__device__ __forceinline__ void fetch_gates(ChunkGates& gates, const PrepareParams& params,
                                            const Chunk& chunk, int head, int warp, int lane) {
  if (lane >= kBlockTokens) {
    return;
  }
  const int t = warp * kBlockTokens + lane;
  if (t < chunk.length) {
    const int64_t at = (chunk.token + t) * (int64_t{params.order.H} * params.group) + head;
    ptx::async_copy_word(&gates.alpha[t], params.alpha + at);
    if (params.mu != nullptr) {
      ptx::async_copy_word(&gates.mu[t], params.mu + at);
    } else {
      gates.mu[t] = 0.0f;
    }
    ptx::async_copy_word(&gates.eta[t], params.eta + at);
    ptx::async_copy_word(&gates.beta[t], params.beta + at);
    ptx::async_copy_word(&gates.pi[t], (params.pi == nullptr ? params.alpha : params.pi) + at);
  } else {
    gates.alpha[t] = gates.mu[t] = gates.pi[t] = 1.0f;
    gates.eta[t] = gates.beta[t] = 0.0f;
  }
}

/// Warp w runs block w's recurrence, a lane a column: the block's 16 tokens, its initial M, its
/// initial S.
///     Mu[t] = mu_t Mu[t-1],  H[t] = pi_t G[t-1],  G[t] = alpha_t G[t-1] + beta_t Mu[t]
__device__ __forceinline__ void local_masks(ChunkMasks& masks, const ChunkGates& gates, int warp,
                                            int lane) {
  if (lane <= kLaneS) {
    float Mu = lane == kLaneM ? 1.0f : 0.0f;
    float G = lane == kLaneS ? 1.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < kBlockTokens; ++i) {
      const int t = warp * kBlockTokens + i;
      Mu = lane == i ? 1.0f : gates.mu[t] * Mu;  // token i opens its column
      const float H = gates.pi[t] * G;
      G = fmaf(gates.alpha[t], G, gates.beta[t] * Mu);
      if (lane < kBlockTokens) {
        masks.G[t][lane] = G;
      } else {
        (lane == kLaneM ? masks.b : masks.a)[t] = G;
        (lane == kLaneM ? masks.c : masks.e)[t] = H;
      }
      if (lane == kLaneM) {
        masks.m[t] = Mu;
      }
    }
    if (lane < kBlockTokens) {
      masks.end_G[warp][warp * kBlockTokens + lane] = G;
      masks.end_Mu[warp][warp * kBlockTokens + lane] = Mu;
    }
  }
}

/// Rows at the ends of the blocks, a thread a column: G <- a' G + b' Mu, Mu <- m' Mu; 0 before the
/// column opens.
__device__ __forceinline__ void end_rows(ChunkMasks& masks, int column) {
  if (column > kColumnS) {
    return;
  }
  float G = column == kColumnS ? 1.0f : 0.0f;
  float Mu = column == kColumnM ? 1.0f : 0.0f;
  const int own = column < kChunk ? column / kBlockTokens : -1;
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    const int t = block * kBlockTokens + kBlockTokens - 1;
    if (block == own) {
      G = masks.end_G[block][column];
      Mu = masks.end_Mu[block][column];
    } else {
      G = fmaf(masks.a[t], G, masks.b[t] * Mu);
      Mu = masks.m[t] * Mu;
      masks.end_G[block][column] = G;
      masks.end_Mu[block][column] = Mu;
    }
  }
}

/// The vectors of the record, a thread a token; g and n still without 2^x.
__device__ __forceinline__ void write_vectors(ChunkVectors& out, const ChunkMasks& masks,
                                              const ChunkGates& gates, float rq, float rk,
                                              float scale, int t) {
  const int block = t / kBlockTokens;
  const float G_M = block == 0 ? 0.0f : masks.end_G[block - 1][kColumnM];
  const float Mu_M = block == 0 ? 1.0f : masks.end_Mu[block - 1][kColumnM];
  const float G_S = block == 0 ? 1.0f : masks.end_G[block - 1][kColumnS];
  const float a = masks.a[t];
  const float e = masks.e[t];
  out.e[t] = e * G_S * rk;
  out.c[t] = fmaf(e, G_M, masks.c[t] * Mu_M) * rk;
  out.a[t] = a * G_S * (rq * scale);
  out.b[t] = fmaf(a, G_M, masks.b[t] * Mu_M) * (rq * scale);
  out.g[t] = gates.eta[t] * masks.end_G[kBlocks - 1][t];
  out.n[t] = gates.eta[t] * masks.end_Mu[kBlocks - 1][t];
  out.rk[t] = rk;
  out.rq[t] = rq;
  if (t < kUnusedFloats) {
    out.unused[t] = 0;
  }
  if (t == 0) {
    out.a_end = masks.end_G[kBlocks - 1][kColumnS];
    out.b_end = masks.end_G[kBlocks - 1][kColumnM];
    out.m_end = masks.end_Mu[kBlocks - 1][kColumnM];
  }
}

/// A = I + (H o KK^T) D, and P becomes PG = scale (P o G) D, from the scores in wgmma's accumulator
/// layout: warp w holds rows of block w. In blocks before w the masks are of rank two, beyond it 0.
template <int K>
__device__ __forceinline__ void apply_masks(PrepareShared<K>& shared, const ChunkGates& gates,
                                            const float (&P)[32], const float (&KK)[32],
                                            float (&PG)[32], float scale, int warp, int lane) {
  const ChunkMasks& masks = shared.masks;
  const int pair = 2 * (lane % 4);
  const int row = warp * kBlockTokens + lane / 4;  // and row + 8
  float a[2], b[2], e[2], c[2], row_P[2], row_KK[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = row + 8 * i;
    a[i] = masks.a[t];
    b[i] = masks.b[t];
    e[i] = masks.e[t];
    c[i] = masks.c[t];
    row_P[i] = scale * shared.rq[t];
    row_KK[i] = shared.rk[t];
  }
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int column = 8 * j + pair;
    float2 A[2] = {};
    if (j / 2 <= warp) {
      float2 G[2];
      float2 H[2];
      if (j / 2 < warp) {
        const float2 x = *reinterpret_cast<const float2*>(&masks.end_G[warp - 1][column]);
        const float2 y = *reinterpret_cast<const float2*>(&masks.end_Mu[warp - 1][column]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          G[i] = {fmaf(a[i], x.x, b[i] * y.x), fmaf(a[i], x.y, b[i] * y.y)};
          H[i] = {fmaf(e[i], x.x, c[i] * y.x), fmaf(e[i], x.y, c[i] * y.y)};
        }
      } else {
        const int local = j % 2 * 8 + pair;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int t = row + 8 * i;
          const float pi = gates.pi[t];
          G[i] = *reinterpret_cast<const float2*>(&masks.G[t][local]);
          const float2 z = *reinterpret_cast<const float2*>(&masks.G[t == 0 ? 0 : t - 1][local]);
          H[i] = {column < t ? pi * z.x : 0.0f, column + 1 < t ? pi * z.y : 0.0f};
        }
      }
      const float2 rk = *reinterpret_cast<const float2*>(&shared.rk[column]);
      const float2 eta = *reinterpret_cast<const float2*>(&gates.eta[column]);
      const float2 D = {rk.x * eta.x, rk.y * eta.y};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i;
        const int at = 4 * j + 2 * i;
        PG[at] = row_P[i] * D.x * (P[at] * G[i].x);
        PG[at + 1] = row_P[i] * D.y * (P[at + 1] * G[i].y);
        A[i] = {row_KK[i] * D.x * (KK[at] * H[i].x), row_KK[i] * D.y * (KK[at + 1] * H[i].y)};
        A[i].x = column == t ? 1.0f : A[i].x;
        A[i].y = column + 1 == t ? 1.0f : A[i].y;
      }
    } else {
      PG[4 * j] = PG[4 * j + 1] = PG[4 * j + 2] = PG[4 * j + 3] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(&shared.after.A[row + 8 * i][column]) = A[i];
    }
  }
}

/// Inverts the 16 x 16 unit lower triangular diagonal block at `first` in place, one warp, lane c
/// (of 16) owning column c:  x_i = [i == c] - sum over j < i of A[i, j] x_j
__device__ __forceinline__ void invert_block(float (*A)[kStrideA], int first, int lane) {
  const int c = lane % kBlockTokens;
  float x[kBlockTokens];
#pragma unroll
  for (int i = 0; i < kBlockTokens; ++i) {
    float even = i == c ? 1.0f : 0.0f;
    float odd = 0.0f;
#pragma unroll
    for (int j = 0; j < i; j += 4) {
      const float4 a = *reinterpret_cast<const float4*>(&A[first + i][first + j]);
      even = fmaf(-a.x, x[j], even);
      if (j + 1 < i) {
        odd = fmaf(-a.y, x[j + 1], odd);
      }
      if (j + 2 < i) {
        even = fmaf(-a.z, x[j + 2], even);
      }
      if (j + 3 < i) {
        odd = fmaf(-a.w, x[j + 3], odd);
      }
    }
    x[i] = even + odd;
  }
  __syncwarp();
  if (lane < kBlockTokens) {
#pragma unroll
    for (int i = 0; i < kBlockTokens; ++i) {
      A[first + i][first + c] = x[i];
    }
  }
}

/// out = left * right, fp32, for two rows and four columns of this thread, over k_begin <= k <
/// k_end, multiples of 8.
__device__ __forceinline__ void small_product(float4 (&out)[2], const float (*A)[kStrideA],
                                              int left_row, int left_column, int right_row,
                                              int right_column, int row, int column, int k_begin,
                                              int k_end) {
  out[0] = out[1] = {0, 0, 0, 0};
  for (int begin = k_begin; begin < k_end; begin += 8) {
#pragma unroll
    for (int k = begin; k < begin + 8; k += 4) {
      float4 left[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        left[r] = *reinterpret_cast<const float4*>(&A[left_row + row + r][left_column + k]);
      }
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        const float4 right =
            *reinterpret_cast<const float4*>(&A[right_row + k + kk][right_column + column]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float l = kk == 0   ? left[r].x
                          : kk == 1 ? left[r].y
                          : kk == 2 ? left[r].z
                                    : left[r].w;
          out[r].x = fmaf(l, right.x, out[r].x);
          out[r].y = fmaf(l, right.y, out[r].y);
          out[r].z = fmaf(l, right.z, out[r].z);
          out[r].w = fmaf(l, right.w, out[r].w);
        }
      }
    }
  }
}

__device__ __forceinline__ void store_product(float (*A)[kStrideA], int row, int column,
                                              const float4 (&x)[2], float sign) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    *reinterpret_cast<float4*>(&A[row + r][column]) = {sign * x[r].x, sign * x[r].y, sign * x[r].z,
                                                       sign * x[r].w};
  }
}

/// Merges the inverses of diagonal blocks of kSize at `first` and first + kSize, in place of A21:
///     X21 = -X22 (A21 X11)
/// by kSize / 8 warps, this one being `warp`. Of the triangular factors only the 8-wide strips that
/// hold anything are multiplied: a warp owns 8 columns of the first product and 8 rows of the
/// second. The whole block meets at the barriers.
template <int kSize>
__device__ __forceinline__ void merge_blocks(float (*A)[kStrideA], int first, int warp, int lane) {
  const int second = first + kSize;
  const bool works = lane < kSize;  // two rows by four columns a lane
  float4 out[2];
  const int row1 = lane / 2 * 2;
  const int column1 = 8 * warp + lane % 2 * 4;
  if (works) {
    small_product(out, A, second, first, first, first, row1, column1, 8 * warp, kSize);
  }
  __syncthreads();
  if (works) {
    store_product(A, second + row1, first + column1, out, 1.0f);
  }
  __syncthreads();
  const int row2 = 8 * warp + lane / (kSize / 4) * 2;
  const int column2 = lane % (kSize / 4) * 4;
  if (works) {
    small_product(out, A, second, second, second, first, row2, column2, 0, 8 * warp + 8);
  }
  __syncthreads();
  if (works) {
    store_product(A, second + row2, first + column2, out, -1.0f);
  }
  __syncthreads();
}

/// The exponent x of hopper_saved.h for the largest |T|.
__device__ __forceinline__ int scale_exponent(float largest) {
  return largest <= 32768.0f ? 0 : min(max(ilogbf(largest) - 14, 0), kMaxScaleExponent);
}

/// w_limit of hopper_saved.h for what the products make of a |W| of 1 at most; 64000 leaves room
/// for their roundings.
__device__ __forceinline__ float w_limit(float growth) {
  return fminf(fmaxf(64000.0f / growth, 0x1p-20f), 0x1p15f);
}

/// The record's T and PGD, and what g, n and w_limit get from them: the inverse in A to fp16 in its
/// place, by the exponent x of hopper_saved.h. The whole block; vectors are written already.
template <int K>
__device__ __forceinline__ void round_record(PrepareShared<K>& shared, int length, int thread) {
  auto& after = shared.after;
  ChunkVectors& vectors = after.vectors;
  const int warp = thread / 32;
  float4 rows[4][2];  // 8 columns of 4 rows, half of the lanes the upper 4 first: no bank conflicts
  const int upper = thread / 4 % 2;
  float largest = 0;
  float largest_row = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i;
    float sum = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 x =
          *reinterpret_cast<const float4*>(&after.A[row][thread % 8 * 8 + 4 * (half ^ upper)]);
      if (row >= length) {
        x = {0, 0, 0, 0};
      }
      rows[i][half] = x;
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)),  //
                                     fmaxf(fabsf(x.z), fabsf(x.w))));
      sum += (fabsf(x.x) + fabsf(x.y)) + (fabsf(x.z) + fabsf(x.w));
    }
    largest_row = fmaxf(largest_row, sum_of_lanes<8>(sum));
  }
  largest = largest_of_warp(largest);
  largest_row = largest_of_warp(largest_row);
  if (thread % 32 == 0) {
    shared.largest[warp] = largest;
    shared.largest_row[warp] = largest_row;
  }
  __syncthreads();  // A is read: T takes its place
  largest = fmaxf(fmaxf(shared.largest[0], shared.largest[1]),
                  fmaxf(shared.largest[2], shared.largest[3]));
  const int exponent = scale_exponent(largest);
  const float up = exp2f(static_cast<float>(exponent));
  const float down = 1.0f / up;  // exact
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i;
    const auto word = [down](float low, float high) {  // NaN, from infinities, counts as large
      return ptx::pack_half(fmaxf(fminf(low * down, kLargestHalf), -kLargestHalf),
                            fmaxf(fminf(high * down, kLargestHalf), -kLargestHalf));
    };
    const float4 x = rows[i][0];
    const float4 y = rows[i][1];
    const uint2 first = {word(x.x, x.y), word(x.z, x.w)};
    const uint2 second = {word(y.x, y.y), word(y.z, y.w)};
    const uint2 low = upper == 0 ? first : second;
    const uint2 high = upper == 0 ? second : first;
    *reinterpret_cast<uint4*>(after.T + parts::box_offset(row, thread % 8 * 8)) = {low.x, low.y,
                                                                                   high.x, high.y};
  }
  if (thread < kChunk) {
    vectors.g[thread] *= up;
    vectors.n[thread] *= up;
    if (thread == 0) {
      vectors.r_scale = up;
      const float row = fmaxf(fmaxf(shared.largest_row[0], shared.largest_row[1]),
                              fmaxf(shared.largest_row[2], shared.largest_row[3]));
      const float write = fmaxf(shared.largest_write[0], shared.largest_write[1]);
      vectors.w_limit = w_limit(down * row * fmaxf(1.0f, up * write));
    }
  }
  if (exponent != 0) {
    for (int at = thread * 4; at < ptx::kBoxBytes; at += kPrepareThreads * 4) {
      auto& word = *reinterpret_cast<uint32_t*>(after.PGD + at);
      const float2 pair = ptx::unpack<__half>(word);
      word = ptx::pack_half(pair.x * up, pair.y * up);
    }
  }
}

/// Asks for an entry of the chunk table, one thread.
__device__ __forceinline__ void fetch_chunk(Chunk& chunk, const Chunk* from) {
#pragma unroll
  for (size_t i = 0; i < sizeof(Chunk); i += 4) {
    ptx::async_copy_word(reinterpret_cast<char*>(&chunk) + i,
                         reinterpret_cast<const char*>(from) + i);
  }
}

/// Waits for this thread's last record and says that it is there.
template <int K>
__device__ __forceinline__ void publish_last(PrepareShared<K>& shared,
                                             const PrepareParams& params) {
  if (shared.unpublished >= 0) {
    ptx::store_wait<0>();
    publish(ready_words(params.progress) + shared.unpublished);
    shared.unpublished = -1;
  }
}

/// Draws a number for the block's next item; the answer takes its time.
template <int K>
__device__ __forceinline__ uint32_t draw_ticket(const PrepareShared<K>& shared,
                                                const PrepareParams& params) {
  return atomicAdd(shared.helps_only ? &params.progress->taken_helpers : &params.progress->taken,
                   1u);
}

/// The item of that number; none where nothing is left for this block.
template <int K>
__device__ __forceinline__ Item ticket_item(PrepareShared<K>& shared, const PrepareParams& params,
                                            uint32_t ticket) {
  const ItemOrder& order = params.order;
  if (!shared.helps_only) {
    const int index = static_cast<int>(gridDim.x + ticket);
    if (index < order.shared_items) {
      return order.item(index);
    }
    if (order.shared_items == order.items ||
        (!on_helper(order) && atomicAdd(&params.progress->helpers, 0u) != 0)) {
      return {-1, 0};
    }
    shared.helps_only = true;
    atomicAdd(&params.progress->helpers, 1u);
    ticket = draw_ticket(shared, params);
  }
  return order.item(order.shared_items + static_cast<int>(ticket));
}

/// kGrouped: several value heads to a query/key head; else the scores die with the masks' use.
template <class T, int K, bool kGrouped>
__global__ void __launch_bounds__(kPrepareThreads, K == 256 ? 3 : 4)
    prepare(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
            const __grid_constant__ PrepareParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<PrepareShared<K>*>(memory);
  auto& after = shared.after;
  ChunkVectors& vectors = after.vectors;
  const ItemOrder& order = params.order;
  const int members = kGrouped ? params.group : 1;
  ptx::wait_for_dependencies();  // launched early: on the chunk table
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    shared.items[0] = order.item(static_cast<int>(blockIdx.x));
    shared.unpublished = -1;
    shared.helps_only = false;
    if (on_helper(order)) {
      atomicAdd(&params.progress->helpers, 1u);
    }
    ptx::mbarrier_init(&shared.loaded, 1);
    ptx::mbarrier_init_fence();
    shared.chunks[0] = params.chunks[shared.items[0].entry];
  }
  __syncthreads();
  fetch_gates(shared.gates[0], params, shared.chunks[0], shared.items[0].key_head * params.group,
              static_cast<int>(threadIdx.x) / 32, static_cast<int>(threadIdx.x) % 32);
  for (int buffer = 0; shared.items[buffer].entry >= 0; buffer ^= 1) {
    const int thread = ptx::fresh_thread_index();
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int key_head = shared.items[buffer].key_head;
    const Chunk& chunk = shared.chunks[buffer];
    ChunkGates& gates = shared.gates[buffer];
    uint32_t ticket = 0;
    if (warp == 0 && ptx::elect_one()) {
      ptx::store_wait_read<0>();  // the record before has left shared memory
      ptx::mbarrier_arrive_expect(&shared.loaded, 2 * (K / 64) * ptx::kBoxBytes);
      const int token = static_cast<int>(chunk.token);
      for (int box = 0; box < K / 64; ++box) {
        ptx::tma_load(shared.tiles[0][box], &q_map, &shared.loaded, box * 64, key_head, token);
        ptx::tma_load(shared.tiles[1][box], &k_map, &shared.loaded, box * 64, key_head, token);
      }
      ticket = draw_ticket(shared, params);
    }
    float P[32];
    float KK[32];
    for (int member = 0; member < members; ++member) {
      const int head = key_head * params.group + member;

      // 1. The masks.
      if (member > 0) {
        fetch_gates(gates, params, chunk, head, warp, lane);
      }
      ptx::async_copy_wait();
      __syncwarp();
      local_masks(shared.masks, gates, warp, lane);
      __syncthreads();
      end_rows(shared.masks, thread);

      // 2. The scores.
      if (member == 0) {
        ptx::mbarrier_wait(&shared.loaded, buffer);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < K / 16; ++step) {
          const uint32_t at = static_cast<uint32_t>(step % 4 * 32);
          const uint64_t q = ptx::descriptor_k(ptx::shared_address(shared.tiles[0][step / 4]) + at);
          const uint64_t k = ptx::descriptor_k(ptx::shared_address(shared.tiles[1][step / 4]) + at);
          ptx::wgmma_sa<T, ptx::Major::kK, ptx::Major::kK>(P, q, k, step != 0);
          ptx::wgmma_sa<T, ptx::Major::kK, ptx::Major::kK>(KK, k, k, step != 0);
        }
        ptx::wgmma_commit();
        query_norms<T, K>(shared, chunk.length, params.l2norm, thread);
        if (warp == 0 && ptx::elect_one()) {
          publish_last(shared, params);
          const Item next = ticket_item(shared, params, ticket);
          shared.items[buffer ^ 1] = next;
          if (next.entry >= 0) {
            fetch_chunk(shared.chunks[buffer ^ 1], params.chunks + next.entry);
          }
        }
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(P);
        ptx::wgmma_touch(KK);
        key_norms<K>(shared, KK, chunk.length, params.l2norm, warp, lane);
      } else if (warp == 0 && ptx::elect_one()) {
        publish_last(shared, params);  // the record of the member before has left shared memory
      }
      __syncthreads();  // and the tiles are read: what follows may overwrite them
      if (thread < kChunk) {
        write_vectors(vectors, shared.masks, gates, shared.rq[thread], shared.rk[thread],
                      params.scale, thread);
        const float write = largest_of_warp(fmaxf(vectors.g[thread], vectors.n[thread]));
        if (lane == 0) {
          shared.largest_write[warp] = write;
        }
      }
      {
        float PG[32];
        apply_masks(shared, gates, P, KK, PG, params.scale, warp, lane);
        parts::store_plain<__half>(parts::plain_lane(ptx::shared_address(after.PGD), warp, lane),
                                   lane, PG);
      }
      __syncwarp();  // a warp inverts the block of its own rows

      // 3. The inverse, and a look ahead: gates of the next item, its q and k to L2.
      invert_block(after.A, warp * kBlockTokens, lane);
      ptx::async_copy_wait();  // the next chunk
      __syncthreads();
      if (member == 0) {
        const Item next = shared.items[buffer ^ 1];
        if (next.entry >= 0) {
          const Chunk& ahead = shared.chunks[buffer ^ 1];
          fetch_gates(shared.gates[buffer ^ 1], params, ahead, next.key_head * params.group, warp,
                      lane);
          if (warp == 0 && ptx::elect_one()) {
            const int token = static_cast<int>(ahead.token);
            for (int box = 0; box < K / 64; ++box) {
              ptx::tma_prefetch(&q_map, box * 64, next.key_head, token);
              ptx::tma_prefetch(&k_map, box * 64, next.key_head, token);
            }
          }
        }
      }
      merge_blocks<16>(after.A, warp / 2 * 32, warp % 2, lane);
      merge_blocks<32>(after.A, 0, warp, lane);

      // 4. To fp16.
      round_record(shared, chunk.length, thread);
      ptx::fence_async_shared();
      __syncthreads();
      if (warp == 0 && ptx::elect_one()) {
        const int64_t record =
            int64_t{shared.items[buffer].entry} * (int64_t{order.H} * params.group) + head;
        char* to = params.records + record * kRecordBytes;
        ptx::bulk_store(to + kRecordT, after.T, ptx::kBoxBytes);
        ptx::bulk_store(to + kRecordPGD, after.PGD, ptx::kBoxBytes);
        ptx::bulk_store(to + kRecordVectors, &vectors, sizeof(ChunkVectors));
        ptx::store_commit();
        shared.unpublished = static_cast<int>(record);
      }
    }
  }
  if (threadIdx.x < 32 && ptx::elect_one()) {
    publish_last(shared, params);
  }
}

}  // namespace mdn::kernels::cuda::hopper
