// Prepare (hopper_prepare.cuh), steps 1 and 2: the masks of a chunk from its gates, norms of q and
// k, and what becomes of the scores and of the record's vectors by them.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_inverse.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_shared.cuh"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/descriptor.cuh"
#include "mdn/kernels/cuda/ptx/matrix.cuh"
#include "mdn/kernels/cuda/ptx/mma.cuh"

namespace mdn::kernels::cuda::hopper {

/// 1 / |x|, 1 / sqrt(sum x^2 + 1e-6), of the warp's rows lane / 4 and lane / 4 + 8 from their sums
/// of squares, which are the diagonals of two blocks of 8 x 8 as wgmma and mma leave them, words
/// (lane / 4, 2 (lane % 4)) and + 1; or 1; 0 past the chunk's end.
__device__ __forceinline__ void write_norms(float* norms, const float2 (&squares)[2], int length,
                                            bool l2norm, int warp, int lane) {
  if (lane % 4 == lane / 8) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = warp * kBlockTokens + lane / 4 + 8 * i;
      const float sum = lane / 4 % 2 == 0 ? squares[i].x : squares[i].y;
      const float norm = l2norm ? rsqrtf(sum + static_cast<float>(kL2NormEps)) : 1.0f;
      norms[row] = row < length ? norm : 0.0f;
    }
  }
}

/// rq of the warp's rows, by products of the rows with themselves.
template <class T, int K>
__device__ __forceinline__ void query_norms(PrepareShared<K>& shared, int length, bool l2norm,
                                            int warp, int lane) {
  float lower[4] = {};
  float upper[4] = {};
  if (l2norm) {
    const uint32_t row_address =
        ptx::shared_address(shared.tiles[0][0] + (warp * kBlockTokens + lane % kBlockTokens) * 128);
#pragma unroll
    for (int step = 0; step < K / 16; ++step) {
      uint32_t q[4];
      const int unit = (step % 4 * 2 + lane / 16) ^ (lane % 8);
      ptx::ldmatrix(q,
                    row_address + static_cast<uint32_t>(step / 4 * 2 * ptx::kBoxBytes + unit * 16));
      ptx::mma<T>(lower, q, q[0], q[2]);
      ptx::mma<T>(upper, q, q[1], q[3]);
    }
  }
  write_norms(shared.rq, {{lower[0], lower[1]}, {upper[2], upper[3]}}, length, l2norm, warp, lane);
}

/// rk likewise, from the diagonal of K K^T.
template <int K>
__device__ __forceinline__ void key_norms(PrepareShared<K>& shared, const float (&scores)[kChunk],
                                          int length, bool l2norm, int warp, int lane) {
  float2 squares[2] = {};
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    if (block == warp) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = kKeyScores + 8 * block + 4 * i + 2 * i;
        squares[i] = {scores[at], scores[at + 1]};
      }
    }
  }
  write_norms(shared.rk, squares, length, l2norm, warp, lane);
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
    for (int first = 0; first < kBlockTokens; first += 4) {
      const int t = warp * kBlockTokens + first;
      const auto four = [t](const float* gate) {
        return *reinterpret_cast<const float4*>(gate + t);
      };
      const float4 alpha = four(gates.alpha);
      const float4 mu = four(gates.mu);
      const float4 beta = four(gates.beta);
      const float4 pi = four(gates.pi);
      float4 Mus, Gs, Hs;
      const auto step = [&](int i, float alpha_t, float mu_t, float beta_t, float pi_t, float& Mu_t,
                            float& G_t, float& H_t) {
        Mu_t = Mu = lane == first + i ? 1.0f : mu_t * Mu;  // token i opens its column
        H_t = pi_t * G;
        G_t = G = fmaf(alpha_t, G, beta_t * Mu);
      };
      step(0, alpha.x, mu.x, beta.x, pi.x, Mus.x, Gs.x, Hs.x);
      step(1, alpha.y, mu.y, beta.y, pi.y, Mus.y, Gs.y, Hs.y);
      step(2, alpha.z, mu.z, beta.z, pi.z, Mus.z, Gs.z, Hs.z);
      step(3, alpha.w, mu.w, beta.w, pi.w, Mus.w, Gs.w, Hs.w);
      if (lane < kBlockTokens) {
        masks.G[t][lane] = Gs.x;
        masks.G[t + 1][lane] = Gs.y;
        masks.G[t + 2][lane] = Gs.z;
        masks.G[t + 3][lane] = Gs.w;
      } else {
        *reinterpret_cast<float4*>((lane == kLaneM ? masks.b : masks.a) + t) = Gs;
        *reinterpret_cast<float4*>((lane == kLaneM ? masks.c : masks.e) + t) = Hs;
      }
      if (lane == kLaneM) {
        *reinterpret_cast<float4*>(masks.m + t) = Mus;
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

/// D of two neighbouring columns, with the norms of their keys.
template <int K>
__device__ __forceinline__ float2 column_factors(const PrepareShared<K>& shared,
                                                 const ChunkGates& gates, int column) {
  const float2 rk = *reinterpret_cast<const float2*>(&shared.rk[column]);
  const float2 eta = *reinterpret_cast<const float2*>(&gates.eta[column]);
  return {rk.x * eta.x, rk.y * eta.y};
}

/// Of A = I + (H o KK^T) D the warp's row of blocks: N = -A left of the diagonal; A on it, the ones
/// left out, in shared memory; and T's zeros beyond it. The scores are in wgmma's accumulator
/// layout: warp w holds rows of block w. In blocks before w the masks are of rank two.
template <int K>
__device__ __forceinline__ void mask_keys(PrepareShared<K>& shared, const ChunkGates& gates,
                                          const float (&scores)[kChunk],
                                          SplitBlock (&N)[kBlocks - 1], int warp, int lane) {
  const ChunkMasks& masks = shared.masks;
  const int pair = 2 * (lane % 4);
  const int row = warp * kBlockTokens + lane / 4;  // and row + 8
  const float rk[2] = {shared.rk[row], shared.rk[row + 8]};
  const float pi[2] = {gates.pi[row], gates.pi[row + 8]};
  float own[2][4];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    if (block == 0 || block == warp) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own[i / 4][i % 4] = scores[kKeyScores + 8 * block + i];
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int column = 8 * half + pair;  // in the block, as `token`
    const float2 D = column_factors(shared, gates, warp * kBlockTokens + column);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = lane / 4 + 8 * i;
      const int before = max(row + 8 * i - 1, 0);
      const float2 G = *reinterpret_cast<const float2*>(&masks.G[before][column]);
      const float2 H = {column < token ? pi[i] * G.x : 0.0f,
                        column + 1 < token ? pi[i] * G.y : 0.0f};
      *reinterpret_cast<float2*>(&shared.after.diagonal[warp][token][column]) = {
          rk[i] * D.x * (own[half][2 * i] * H.x), rk[i] * D.y * (own[half][2 * i + 1] * H.y)};
    }
  }
  const float e[2] = {-rk[0] * masks.e[row], -rk[1] * masks.e[row + 8]};
  const float c[2] = {-rk[0] * masks.c[row], -rk[1] * masks.c[row + 8]};
#pragma unroll
  for (int block = 0; block < kBlocks - 1; ++block) {
    if (block < warp) {
      float A[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = block * kBlockTokens + 8 * half + pair;
        const float2 G = *reinterpret_cast<const float2*>(&masks.end_G[warp - 1][column]);
        const float2 Mu = *reinterpret_cast<const float2*>(&masks.end_Mu[warp - 1][column]);
        const float2 D = column_factors(shared, gates, column);
        const float2 x = {D.x * G.x, D.y * G.y};
        const float2 y = {D.x * Mu.x, D.y * Mu.y};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = kKeyScores + 8 * block + 4 * half + 2 * i;
          A[half][2 * i] = scores[at] * fmaf(e[i], x.x, c[i] * y.x);
          A[half][2 * i + 1] = scores[at + 1] * fmaf(e[i], x.y, c[i] * y.y);
        }
      }
      N[block] = split_block(A);
    } else {
      N[block] = {};
      store_transposed_block(shared.after.T, {}, warp, block + 1, lane);
    }
  }
}

/// PGD = scale (P o G) D to the record's place, from P's transpose: warp w makes column w of
/// blocks, whose masks are of rank two below the diagonal and 0 above it, and so has the more
/// blocks of P the fewer it has of A.
template <int K>
__device__ __forceinline__ void mask_queries(PrepareShared<K>& shared, const ChunkGates& gates,
                                             const float (&scores)[kChunk], float scale, int warp,
                                             int lane) {
  const ChunkMasks& masks = shared.masks;
  const int key = warp * kBlockTokens + lane / 4;  // and key + 8
  const float D[2] = {shared.rk[key] * gates.eta[key], shared.rk[key + 8] * gates.eta[key + 8]};
  const auto row_factors = [&](int token) {
    const float2 rq = *reinterpret_cast<const float2*>(&shared.rq[token]);
    return float2{scale * rq.x, scale * rq.y};
  };
  float own[2][4];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {  // of tokens
    if (block > 0 && block > warp) {
      float x[2], y[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x[i] = D[i] * masks.end_G[block - 1][key + 8 * i];
        y[i] = D[i] * masks.end_Mu[block - 1][key + 8 * i];
      }
      float PG[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int token = block * kBlockTokens + 8 * half + 2 * (lane % 4);
        const float2 factors = row_factors(token);
        const float2 a = *reinterpret_cast<const float2*>(&masks.a[token]);
        const float2 b = *reinterpret_cast<const float2*>(&masks.b[token]);
        const float2 a_row = {factors.x * a.x, factors.y * a.y};
        const float2 b_row = {factors.x * b.x, factors.y * b.y};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * block + 4 * half + 2 * i;
          PG[half][2 * i] = scores[at] * fmaf(a_row.x, x[i], b_row.x * y[i]);
          PG[half][2 * i + 1] = scores[at + 1] * fmaf(a_row.y, x[i], b_row.y * y[i]);
        }
      }
      store_transposed_block(shared.after.PGD, pack_block(PG), block, warp, lane);
    } else if (block < warp) {
      store_transposed_block(shared.after.PGD, {}, block, warp, lane);
    }
    if (block == 0 || block == warp) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        own[i / 4][i % 4] = scores[8 * block + i];
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = warp * kBlockTokens + 8 * half + 2 * (lane % 4);
    const float2 factors = row_factors(token);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = lane / 4 + 8 * i;
      own[half][2 * i] = factors.x * D[i] * (own[half][2 * i] * masks.G[token][column]);
      own[half][2 * i + 1] = factors.y * D[i] * (own[half][2 * i + 1] * masks.G[token + 1][column]);
    }
  }
  store_transposed_block(shared.after.PGD, pack_block(own), warp, warp, lane);
}

}  // namespace mdn::kernels::cuda::hopper
