// Prepare (hopper_prepare.cuh), steps 1 and 2: the masks of a chunk from its gates, norms of q and
// k, and what becomes of the scores and of the record's vectors by them.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_shared.cuh"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/convert.cuh"

namespace mdn::kernels::cuda::hopper {

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

}  // namespace mdn::kernels::cuda::hopper
