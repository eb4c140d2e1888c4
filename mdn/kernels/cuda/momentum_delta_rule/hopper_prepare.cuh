// Prepare: everything of a chunk that does not depend on the states, one block for every (chunk,
// query/key head), all chunks at once. Writes the records of hopper_saved.h.
//
//   1. P = Q K^T and K K^T by wgmma, raw rows; the L2 norms are folded in as factors of rows and
//      columns
//   2. the masks H and G: the recurrence inside blocks of 16 tokens, rank two beyond
//      (only products and sums of non-negative numbers: no logarithm, division or difference)
//   3. A = I + (H o KK^T) D in shared memory, inverted there in fp32: substitution in 16 x 16
//      blocks, then merges 16 -> 32 -> 64
//   4. T and PGD rounded to fp16, written with the vectors as one run of bytes
//
// With several value heads to a query/key head the scores are made once and 2-4 repeated.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/parts/tile.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/tensor_map.h"
#include "mdn/kernels/cuda/ptx/tma.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::hopper {

struct PrepareParams {
  const Chunk* chunks;
  const float* alpha;  // gates [tokens, HV]
  const float* mu;
  const float* eta;
  const float* beta;
  const float* pi;  // null: alpha
  char* records;
  int H;
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
inline constexpr int kStrideLocal = 20;                // floats a row of the local masks
inline constexpr int kLocalM = kBlockTokens;           // columns of the local masks: the M and
inline constexpr int kLocalS = kBlockTokens + 1;       // the S that the block starts with
inline constexpr int kMaxScaleExponent = 12;

/// Gates of the chunk, neutral past its end.
struct ChunkGates {
  float alpha[kChunk];
  float mu[kChunk];
  float eta[kChunk];
  float beta[kChunk];
  float pi[kChunk];
};

/// The masks in factored form: inside a block by element, beyond it through the row at the end of
/// the block before.
struct ChunkMasks {
  float G[kChunk][kStrideLocal];      // G[t, j] for j in t's block; then b'_t and a'_t
  float H[kChunk][kStrideLocal];      // H[t, j]; then c'_t and e'_t
  float m[kChunk];                    // m'_t
  float end_G[kBlocks][kChunk + 4];   // row of G at the end of each block, all columns
  float end_Mu[kBlocks][kChunk + 4];  // the same of Mu
};

/// Shared memory. The q and k tiles are read by wgmma only; what comes after the scores lies over
/// them.
template <int K>
struct PrepareShared {
  struct After {
    alignas(128) char record[kRecordBytes];
    alignas(16) float A[kChunk][kStrideA];
    ChunkMasks masks;
    ChunkGates gates;
    float largest[kPrepareThreads / 32];
  };
  union {
    alignas(1024) char tiles[2][K / 64][ptx::kBoxBytes];  // q, k
    After after;
  };
  float rq[kChunk];
  float rk[kChunk];
  uint64_t loaded;
};

/// rq, rk of the chunk's rows: 1 / sqrt(sum x^2 + 1e-6), or 1; 0 past the end.
template <class T, int K>
__device__ __forceinline__ void row_norms(PrepareShared<K>& shared, int length, bool l2norm,
                                          int thread) {
  const int row = thread % kChunk;
  const int which = thread / kChunk;  // 0: q, 1: k
  float sum = 0;
  if (l2norm) {
#pragma unroll
    for (int box = 0; box < K / 64; ++box) {
#pragma unroll
      for (int unit = 0; unit < 8; ++unit) {
        const uint4 words = *reinterpret_cast<const uint4*>(&shared.tiles[which][box][row * 128] +
                                                            ((unit ^ (row % 8)) * 16));
        for (const uint32_t word : {words.x, words.y, words.z, words.w}) {
          const float2 x = ptx::unpack<T>(word);
          sum = fmaf(x.x, x.x, fmaf(x.y, x.y, sum));
        }
      }
    }
  }
  const float norm = l2norm ? rsqrtf(sum + static_cast<float>(kL2NormEps)) : 1.0f;
  (which == 0 ? shared.rq : shared.rk)[row] = row < length ? norm : 0.0f;
}

/// One token's gates on their way from global memory to `ChunkGates`.
struct TokenGates {
  float alpha, mu, eta, beta, pi;
};

__device__ __forceinline__ TokenGates load_gates(const PrepareParams& params, const Chunk& chunk,
                                                 int head, int64_t heads, int thread) {
  TokenGates gates{1.0f, 1.0f, 0.0f, 0.0f, 1.0f};
  if (thread < chunk.length) {
    const int64_t at = (chunk.token + thread) * heads + head;
    gates.alpha = params.alpha[at];
    gates.mu = params.mu[at];
    gates.eta = params.eta[at];
    gates.beta = params.beta[at];
    gates.pi = params.pi == nullptr ? gates.alpha : params.pi[at];
  }
  return gates;
}

__device__ __forceinline__ void store_gates(ChunkGates& gates, const TokenGates& token,
                                            int thread) {
  if (thread < kChunk) {
    gates.alpha[thread] = token.alpha;
    gates.mu[thread] = token.mu;
    gates.eta[thread] = token.eta;
    gates.beta[thread] = token.beta;
    gates.pi[thread] = token.pi;
  }
}

/// Warp w runs block w's recurrence, a lane a column: the block's 16 tokens, its initial M, its
/// initial S.
///     Mu[t] = mu_t Mu[t-1],  H[t] = pi_t G[t-1],  G[t] = alpha_t G[t-1] + beta_t Mu[t]
__device__ __forceinline__ void local_masks(ChunkMasks& masks, const ChunkGates& gates, int warp,
                                            int lane) {
  if (lane < kLocalS + 1) {
    float Mu = lane == kLocalM ? 1.0f : 0.0f;
    float G = lane == kLocalS ? 1.0f : 0.0f;
#pragma unroll
    for (int i = 0; i < kBlockTokens; ++i) {
      const int t = warp * kBlockTokens + i;
      Mu = lane == i ? 1.0f : gates.mu[t] * Mu;  // token i opens its column
      const float H = gates.pi[t] * G;
      G = fmaf(gates.alpha[t], G, gates.beta[t] * Mu);
      masks.G[t][lane] = G;
      masks.H[t][lane] = H;
      if (lane == kLocalM) {
        masks.m[t] = Mu;
      }
    }
    if (lane < kBlockTokens) {
      masks.end_G[warp][warp * kBlockTokens + lane] = G;
      masks.end_Mu[warp][warp * kBlockTokens + lane] = Mu;
    }
  }
}

/// Rows at the ends of the blocks, a thread a column: G <- a' G + b' Mu, Mu <- m' Mu.
__device__ __forceinline__ void end_rows(ChunkMasks& masks, int column) {
  if (column > kColumnS) {
    return;
  }
  int block = 0;
  float G = column == kColumnS ? 1.0f : 0.0f;
  float Mu = column == kColumnM ? 1.0f : 0.0f;
  if (column < kChunk) {
    block = column / kBlockTokens;
    G = masks.end_G[block][column];
    Mu = masks.end_Mu[block][column];
    ++block;
  }
  for (; block < kBlocks; ++block) {
    const int t = block * kBlockTokens + kBlockTokens - 1;
    G = fmaf(masks.G[t][kLocalS], G, masks.G[t][kLocalM] * Mu);
    Mu = masks.m[t] * Mu;
    masks.end_G[block][column] = G;
    masks.end_Mu[block][column] = Mu;
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
  const float a = masks.G[t][kLocalS];
  const float e = masks.H[t][kLocalS];
  out.e[t] = e * G_S * rk;
  out.c[t] = fmaf(e, G_M, masks.H[t][kLocalM] * Mu_M) * rk;
  out.a[t] = a * G_S * (rq * scale);
  out.b[t] = fmaf(a, G_M, masks.G[t][kLocalM] * Mu_M) * (rq * scale);
  out.g[t] = gates.eta[t] * masks.end_G[kBlocks - 1][t];
  out.n[t] = gates.eta[t] * masks.end_Mu[kBlocks - 1][t];
  out.rk[t] = rk;
  out.rq[t] = rq;
  if (t == 0) {
    out.a_end = masks.end_G[kBlocks - 1][kColumnS];
    out.b_end = masks.end_G[kBlocks - 1][kColumnM];
    out.m_end = masks.end_Mu[kBlocks - 1][kColumnM];
  }
}

/// A = I + (H o KK^T) D and PG = scale (P o G) D from the scores in wgmma's accumulator layout:
/// warp w holds rows of block w, so only the diagonal block needs the mask element by element.
template <int K>
__device__ __forceinline__ void apply_masks(PrepareShared<K>& shared, const float (&P)[32],
                                            const float (&KK)[32], float (&PG)[32], float scale,
                                            int warp, int lane) {
  auto& after = shared.after;
  const ChunkMasks& masks = after.masks;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = warp * kBlockTokens + lane / 4 + 8 * i;
    const float a = masks.G[t][kLocalS];
    const float b = masks.G[t][kLocalM];
    const float e = masks.H[t][kLocalS];
    const float c = masks.H[t][kLocalM];
    const float row_P = scale * shared.rq[t];
    const float row_KK = shared.rk[t];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float2 A;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int column = 8 * j + 2 * (lane % 4) + h;
        float G = 0;
        float H = 0;
        if (j / 2 < warp) {
          const float end_G = masks.end_G[warp - 1][column];
          const float end_Mu = masks.end_Mu[warp - 1][column];
          G = fmaf(a, end_G, b * end_Mu);
          H = fmaf(e, end_G, c * end_Mu);
        } else if (j / 2 == warp) {
          G = masks.G[t][column - warp * kBlockTokens];
          H = masks.H[t][column - warp * kBlockTokens];
        }
        const float D = shared.rk[column] * after.gates.eta[column];
        const int at = 4 * j + 2 * i + h;
        PG[at] = row_P * D * (P[at] * G);
        const float LD = row_KK * D * (KK[at] * H);
        (h == 0 ? A.x : A.y) = column == t ? 1.0f : LD;
      }
      *reinterpret_cast<float2*>(&after.A[t][8 * j + 2 * (lane % 4)]) = A;
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

/// out = sign * left * right, fp32, for this thread's kRows rows by 4 columns of a kSize product.
template <int kSize, int kRows>
__device__ __forceinline__ void small_product(float4 (&out)[kRows], const float (*A)[kStrideA],
                                              int left_row, int left_column, int right_row,
                                              int right_column, int row, int column) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    out[r] = {0, 0, 0, 0};
  }
#pragma unroll
  for (int k = 0; k < kSize; k += 4) {
    float4 left[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      left[r] = *reinterpret_cast<const float4*>(&A[left_row + row + r][left_column + k]);
    }
#pragma unroll
    for (int kk = 0; kk < 4; ++kk) {
      const float4 right =
          *reinterpret_cast<const float4*>(&A[right_row + k + kk][right_column + column]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float l = kk == 0 ? left[r].x : kk == 1 ? left[r].y : kk == 2 ? left[r].z : left[r].w;
        out[r].x = fmaf(l, right.x, out[r].x);
        out[r].y = fmaf(l, right.y, out[r].y);
        out[r].z = fmaf(l, right.z, out[r].z);
        out[r].w = fmaf(l, right.w, out[r].w);
      }
    }
  }
}

/// Merges inverted diagonal blocks of kSize at `first` and first + kSize, by `kThreads` threads:
///     X21 = -X22 (A21 X11), in place of A21. The whole block meets at the barriers.
template <int kSize, int kThreads>
__device__ __forceinline__ void merge_blocks(float (*A)[kStrideA], int first, int thread) {
  constexpr int kRows = kSize * kSize / 4 / kThreads;
  const int column = thread % (kSize / 4) * 4;
  const int row = thread / (kSize / 4) * kRows;
  const int second = first + kSize;
  float4 out[kRows];
  small_product<kSize, kRows>(out, A, second, first, first, first, row, column);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    *reinterpret_cast<float4*>(&A[second + row + r][first + column]) = out[r];
  }
  __syncthreads();
  small_product<kSize, kRows>(out, A, second, second, second, first, row, column);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    *reinterpret_cast<float4*>(&A[second + row + r][first + column]) = {-out[r].x, -out[r].y,
                                                                        -out[r].z, -out[r].w};
  }
  __syncthreads();
}

/// The exponent x of hopper_saved.h for the largest |T|.
__device__ __forceinline__ int scale_exponent(float largest) {
  return largest <= 32768.0f ? 0 : min(max(ilogbf(largest) - 14, 0), kMaxScaleExponent);
}

template <class T, int K>
__global__ void __launch_bounds__(kPrepareThreads, 4)
    prepare(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
            const __grid_constant__ PrepareParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<PrepareShared<K>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int64_t entry = blockIdx.x / params.H;
  const int key_head = static_cast<int>(blockIdx.x % params.H);
  const Chunk chunk = params.chunks[entry];
  ptx::launch_dependents();
  if (chunk.length == 0) {
    return;
  }

  const int64_t heads = int64_t{params.H} * params.group;
  TokenGates gates = load_gates(params, chunk, key_head * params.group, heads, thread);

  // 1. The scores.
  if (thread == 0) {
    ptx::mbarrier_init(&shared.loaded, 1);
    ptx::mbarrier_init_fence();
    ptx::mbarrier_arrive_expect(&shared.loaded, 2 * (K / 64) * ptx::kBoxBytes);
    for (int box = 0; box < K / 64; ++box) {
      const int token = static_cast<int>(chunk.token);
      ptx::tma_load(shared.tiles[0][box], &q_map, &shared.loaded, box * 64, key_head, token);
      ptx::tma_load(shared.tiles[1][box], &k_map, &shared.loaded, box * 64, key_head, token);
    }
  }
  __syncthreads();
  ptx::mbarrier_wait(&shared.loaded, 0);
  float P[32];
  float KK[32];
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
  row_norms<T, K>(shared, chunk.length, params.l2norm, thread);
  ptx::wgmma_wait<0>();
  ptx::wgmma_touch(P);
  ptx::wgmma_touch(KK);
  __syncthreads();  // the tiles are read: what follows may overwrite them

  auto& after = shared.after;
  auto& vectors = *reinterpret_cast<ChunkVectors*>(after.record + kRecordVectors);
  for (int member = 0; member < params.group; ++member) {
    const int head = key_head * params.group + member;

    // 2. The masks.
    if (member > 0) {
      gates = load_gates(params, chunk, head, heads, thread);
    }
    store_gates(after.gates, gates, thread);
    __syncthreads();
    local_masks(after.masks, after.gates, warp, lane);
    __syncthreads();
    end_rows(after.masks, thread);
    __syncthreads();
    if (member > 0) {  // the record of the member before has left shared memory
      if (thread == 0) {
        ptx::store_wait_read<0>();
      }
      __syncthreads();
    }
    if (thread < kChunk) {
      write_vectors(vectors, after.masks, after.gates, shared.rq[thread], shared.rk[thread],
                    params.scale, thread);
    }
    float PG[32];
    apply_masks(shared, P, KK, PG, params.scale, warp, lane);
    parts::store_plain<__half>(
        parts::plain_lane(ptx::shared_address(after.record + kRecordPGD), warp, lane), lane, PG);
    __syncthreads();

    // 3. The inverse.
    invert_block(after.A, warp * kBlockTokens, lane);
    __syncthreads();
    merge_blocks<16, 64>(after.A, thread / 64 * 32, thread % 64);
    merge_blocks<32, 128>(after.A, 0, thread);

    // 4. To fp16.
    float4 rows[4][2];  // 8 columns of 4 rows
    float largest = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 8 + 16 * i;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 x = *reinterpret_cast<const float4*>(&after.A[row][thread % 8 * 8 + 4 * half]);
        if (row >= chunk.length) {
          x = {0, 0, 0, 0};
        }
        rows[i][half] = x;
        largest = fmaxf(largest, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)),  //
                                       fmaxf(fabsf(x.z), fabsf(x.w))));
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFF, largest, step));
    }
    if (lane == 0) {
      after.largest[warp] = largest;
    }
    __syncthreads();
    largest =
        fmaxf(fmaxf(after.largest[0], after.largest[1]), fmaxf(after.largest[2], after.largest[3]));
    const int exponent = scale_exponent(largest);
    const float up = exp2f(static_cast<float>(exponent));
    const float down = 1.0f / up;  // exact
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 8 + 16 * i;
      const auto word = [down](float low, float high) {  // NaN, from infinities, counts as large
        constexpr float kLimit = 65504.0f;
        return ptx::pack_half(fmaxf(fminf(low * down, kLimit), -kLimit),
                              fmaxf(fminf(high * down, kLimit), -kLimit));
      };
      const float4 x = rows[i][0];
      const float4 y = rows[i][1];
      *reinterpret_cast<uint4*>(after.record + kRecordT +
                                parts::box_offset(row, thread % 8 * 8)) = {
          word(x.x, x.y), word(x.z, x.w), word(y.x, y.y), word(y.z, y.w)};
    }
    if (thread < kChunk) {
      vectors.g[thread] *= up;
      vectors.n[thread] *= up;
      if (thread == 0) {
        vectors.r_scale = up;
      }
    }
    if (exponent != 0) {
      for (int at = thread * 4; at < ptx::kBoxBytes; at += kPrepareThreads * 4) {
        auto& word = *reinterpret_cast<uint32_t*>(after.record + kRecordPGD + at);
        const float2 pair = ptx::unpack<__half>(word);
        word = ptx::pack_half(pair.x * up, pair.y * up);
      }
    }
    ptx::fence_async_shared();
    __syncthreads();
    if (thread == 0) {
      ptx::bulk_store(params.records + (entry * heads + head) * int64_t{kRecordBytes}, after.record,
                      kRecordBytes);
      ptx::store_commit();
    }
  }
  if (thread == 0) {
    ptx::store_wait_read<0>();  // shared memory outlives the copy; the kernel's end completes it
  }
}

}  // namespace mdn::kernels::cuda::hopper
