// The gradients of q, k, alpha and beta: a block a chunk and query/key head, its value heads one
// after the other, so that sums over them need no memory and have one order.
//
// First the products over value channels, with the states before and their gradients after the
// chunk as operands straight from memory (each warp has a quarter of the key channels to itself);
// then a thread a key channel does what is left, of which everything is a product of decays, see
// docs/math/kimi_delta_rule.md, section 6. Loops over tokens have fixed bounds and conditions
// inside: only then are they unrolled inside each other, and rows of tokens are registers.
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/types.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/ptx/convert.cuh"
#include "mdn/kernels/cuda/ptx/mma.cuh"

namespace mdn::kernels::cuda::kimi {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

struct GradientParams {
  KimiDeltaRuleProblem problem;
  Work work;
  const void* q;
  const void* k;
  const float* alpha;
  const void* d_o;
  void* d_q;
  void* d_k;
  float* d_alpha;
  float* d_beta;
};

/// What the warps hand to the threads. Rows of tokens are padded: a warp writes eight at once.
template <int kK>
struct Shared {
  static constexpr int kRow = kK + 8;
  float d_queries[kChunk][kRow];  // dO S^T: of since q, without scale
  float d_keys[kChunk][kRow];     // dR S^T: of since k, without -β
  float d_writes[kChunk][kRow];   // R dS^T: of until k, without β
  float d_decay[kK];              // Σ_V S∘dS: of A(C, 0)
  // Of scale QK and of KK, [t][j] together: scale β_j dO_t·R_j and -β_t β_j dR_t·R_j
  float2 d_scores[kChunk][kChunk];
  float dots[kWarps][2 * kChunk];
};

/// Sums over value channels of products of two pairs.
template <class T>
__device__ __forceinline__ void add_products(float (&sum)[2], uint32_t x, uint32_t y) {
  const float2 a = ptx::unpack<T>(x), b = ptx::unpack<T>(y);
  sum[0] += a.x * b.x;
  sum[1] += a.y * b.y;
}

/// A tile [16 tokens, 16 values] of a tensor [B, T, HV, V] as an A operand; zeros outside.
template <class T>
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], const void* tensor,
                                          const KimiDeltaRuleProblem& problem, const Chunk& chunk,
                                          int64_t head, int64_t value, int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i % 2 * 8;
    const int64_t column = value + i / 2 * 8 + lane % 4 * 2;
    a[i] = 0;
    if (row < chunk.length && column < problem.V) {
      a[i] = *reinterpret_cast<const uint32_t*>(
          static_cast<const T*>(tensor) + ((chunk.token + row) * problem.HV + head) * problem.V +
          column);
    }
  }
}

/// The products over value channels of one value head into `shared`, and d_beta.
template <class T, int kK>
__device__ __forceinline__ void products(const GradientParams& p, const Chunk& chunk, int64_t place,
                                         int64_t head, Shared<kK>& shared, const float* beta) {
  constexpr int kPairs = kK / 16 / kWarps;  // tiles of 16 key channels of a warp
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  float d_queries[2 * kPairs][4] = {}, d_keys[2 * kPairs][4] = {}, d_writes[2 * kPairs][4] = {};
  float d_decay[kPairs][2][2] = {};
  float scores[2][4] = {};  // warp 0: dO R^T; warp 1: dR R^T
  const int tiles = static_cast<int>(p.work.value_tiles);
#pragma unroll 2
  for (int tile = 0; tile < tiles; ++tile) {
    const int64_t at = place * p.work.value_tiles + tile;
    uint4 S[kPairs], dS[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const int64_t fragment = (at * (kK / 16) + warp * kPairs + i) * 32 + lane;
      S[i] = p.work.states[fragment];
      dS[i] = p.work.d_states[fragment];
    }
    const uint4 R4 = p.work.R[at * 32 + lane], d_R4 = p.work.d_R[at * 32 + lane];
    const uint32_t R[4] = {R4.x, R4.y, R4.z, R4.w}, d_R[4] = {d_R4.x, d_R4.y, d_R4.z, d_R4.w};
    uint32_t d_o[4];
    load_rows<T>(d_o, p.d_o, p.problem, chunk, head, int64_t{kValueTile} * tile, lane);
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      add_products<T>(d_decay[i][0], S[i].x, dS[i].x);
      add_products<T>(d_decay[i][0], S[i].y, dS[i].y);
      add_products<T>(d_decay[i][1], S[i].z, dS[i].z);
      add_products<T>(d_decay[i][1], S[i].w, dS[i].w);
      uint32_t low = ptx::transpose(S[i].x), high = ptx::transpose(S[i].y);
      ptx::mma<T>(d_queries[2 * i], d_o, low, high);
      ptx::mma<T>(d_keys[2 * i], d_R, low, high);
      low = ptx::transpose(S[i].z), high = ptx::transpose(S[i].w);
      ptx::mma<T>(d_queries[2 * i + 1], d_o, low, high);
      ptx::mma<T>(d_keys[2 * i + 1], d_R, low, high);
      ptx::mma<T>(d_writes[2 * i], R, ptx::transpose(dS[i].x), ptx::transpose(dS[i].y));
      ptx::mma<T>(d_writes[2 * i + 1], R, ptx::transpose(dS[i].z), ptx::transpose(dS[i].w));
    }
    if (warp == 0) {
      ptx::mma<T>(scores[0], d_o, R[0], R[2]);
      ptx::mma<T>(scores[1], d_o, R[1], R[3]);
    } else if (warp == 1) {
      ptx::mma<T>(scores[0], d_R, R[0], R[2]);
      ptx::mma<T>(scores[1], d_R, R[1], R[3]);
    }
  }

  const int row = lane / 4, column = lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2 * kPairs; ++i) {
    const int channel = (warp * 2 * kPairs + i) * 8 + column;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto put = [&](float(&to)[kChunk][Shared<kK>::kRow], const float(&d)[4]) {
        *reinterpret_cast<float2*>(&to[row + 8 * half][channel]) =
            make_float2(d[2 * half], d[2 * half + 1]);
      };
      put(shared.d_queries, d_queries[i]);
      put(shared.d_keys, d_keys[i]);
      put(shared.d_writes, d_writes[i]);
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float sum = d_decay[i / 2][i % 2][e];
      sum += __shfl_xor_sync(kAllLanes, sum, 4);
      sum += __shfl_xor_sync(kAllLanes, sum, 8);
      sum += __shfl_xor_sync(kAllLanes, sum, 16);
      if (row == 0) {
        shared.d_decay[channel + e] = sum;
      }
    }
  }
  if (warp < 2) {
    const float scale = static_cast<float>(p.problem.scale);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int t = row + i / 2 % 2 * 8, j = i / 4 * 8 + column + i % 2;
      const float score = scores[i / 4][i % 4];
      if (warp == 0) {
        shared.d_scores[t][j].x = scale * beta[j] * score;
      } else {
        shared.d_scores[t][j].y = -beta[t] * beta[j] * score;
        if (t == j && t < chunk.length) {
          // dβ_t = dR_t·R_t
          p.d_beta[(chunk.token + t) * p.problem.HV + head] = score;
        }
      }
    }
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(kThreads, 3) gradients_kernel(const GradientParams p) {
  using Place = Record<kK>;
  extern __shared__ __align__(16) unsigned char kimi_shared[];
  Shared<kK>& shared = *reinterpret_cast<Shared<kK>*>(kimi_shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t group = p.problem.HV / p.problem.H;
  const int64_t key_heads = p.work.heads / group;
  const int64_t key_head = p.work.first_head / group + blockIdx.x % key_heads;
  const int64_t entry = blockIdx.x / key_heads;
  const Chunk chunk = p.work.table.chunks[entry];
  if (chunk.length == 0) {
    return;
  }
  const int64_t K = p.problem.K;
  const bool inside = thread < K;  // a thread a key channel

  float d_q[kChunk] = {}, d_k[kChunk] = {};  // of the normalised rows
  for (int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
    const int64_t place = p.work.place(entry, head);
    const auto* record = p.work.records + place * Place::kBytes;
    const float* beta = reinterpret_cast<const float*>(record + Place::kBeta);
    const float* factors = reinterpret_cast<const float*>(record + Place::kFactors);
    products<T, kK>(p, chunk, place, head, shared, beta);
    __syncthreads();
    if (thread < kK) {
      float q[kChunk], k[kChunk], alpha[kChunk];
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        q[t] = k[t] = 0;
        alpha[t] = 1;
        if (inside && t < chunk.length) {
          const int64_t row = ((chunk.token + t) * p.problem.H + key_head) * K + thread;
          q[t] = factors[t] * to_float(static_cast<const T*>(p.q)[row]);
          k[t] = factors[kChunk + t] * to_float(static_cast<const T*>(p.k)[row]);
          alpha[t] = p.alpha[((chunk.token + t) * p.problem.HV + head) * K + thread];
        }
      }
      const float scale = static_cast<float>(p.problem.scale);
      // Writes of the chunk that token t finds, in its decay's place: pre_t = α_t pre_t-1 + k_t
      // dK^_t
      float since[kChunk], d_alpha[kChunk];
      float decay = 1, pre = 0;
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        d_alpha[t] = pre;
        pre = alpha[t] * pre + k[t] * beta[t] * shared.d_writes[t][thread];
        decay *= alpha[t];
        since[t] = decay;
        d_q[t] += scale * decay * shared.d_queries[t][thread];
        d_k[t] -= beta[t] * decay * shared.d_keys[t][thread];
      }
      // Reads from token t on of what was there before the chunk, in t's place:
      //   suf_t = q_t dQ~_t + k_t dK~_t + α_t+1 suf_t+1
      //   dα_t = A(t-1, 0) (suf_t + A(C, t) dA(C, 0)) + A(C, t) pre_t-1 + pairs inside the chunk
      float until = 1, suf = 0;
#pragma unroll
      for (int t = kChunk - 1; t >= 0; --t) {
        suf = (t + 1 < kChunk ? alpha[(t + 1) % kChunk] * suf : 0.0f) +
              scale * q[t] * shared.d_queries[t][thread] -
              beta[t] * k[t] * shared.d_keys[t][thread];
        d_alpha[t] = (t > 0 ? since[(t + kChunk - 1) % kChunk] : 1.0f) *
                         (suf + until * shared.d_decay[thread]) +
                     until * d_alpha[t];
        d_k[t] += until * beta[t] * shared.d_writes[t][thread];
        until *= alpha[t];
      }
      // Pairs j < t: the write of j as t finds it, and the reads of it from t on
      //   write_t = A(t, j) k_j;   read_t = q_t dQK[t,j] + k_t dKK[t,j] + α_t+1 read_t+1
      //   dq_t += write_t dQK[t,j];  dk_t += write_t dKK[t,j];  dα_t += write_t-1 read_t
      //   dk_j += α_j+1 read_j+1
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        float write[kChunk];
        write[j] = k[j];
#pragma unroll
        for (int t = 1; t < kChunk; ++t) {
          if (t > j) {
            write[t] = alpha[t] * write[t - 1];
          }
        }
        float read = 0;  // decayed to the token before
#pragma unroll
        for (int t = kChunk - 1; t > 0; --t) {
          if (t <= j) {
            continue;
          }
          const float2 d = shared.d_scores[t][j];
          read += q[t] * d.x + k[t] * d.y;
          d_q[t] += write[t] * d.x;
          d_k[t] += write[t] * d.y;
          d_alpha[t] += write[t - 1] * read;
          read *= alpha[t];
        }
        const float d = shared.d_scores[j][j].x;
        d_q[j] += k[j] * d;
        d_k[j] += read + q[j] * d;
      }
      if (inside) {
#pragma unroll
        for (int t = 0; t < kChunk; ++t) {
          if (t < chunk.length) {
            p.d_alpha[((chunk.token + t) * p.problem.HV + head) * K + thread] = d_alpha[t];
          }
        }
      }
    }
    __syncthreads();  // the products of the next head may overwrite
  }

  // Of x / |x| = f x: d x = f (d - f x (f x·d))
  const auto* record = p.work.records + p.work.place(entry, key_head * group) * Place::kBytes;
  const float* factors = reinterpret_cast<const float*>(record + Place::kFactors);
  const auto row_at = [&](int t) {
    return ((chunk.token + t) * p.problem.H + key_head) * K + thread;
  };
  if (p.problem.l2norm) {
    float dots[2 * kChunk];
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      dots[t] = dots[kChunk + t] = 0;
      if (inside && t < chunk.length) {
        dots[t] = d_q[t] * factors[t] * to_float(static_cast<const T*>(p.q)[row_at(t)]);
        dots[kChunk + t] =
            d_k[t] * factors[kChunk + t] * to_float(static_cast<const T*>(p.k)[row_at(t)]);
      }
    }
    const float dot = transposed_sums(dots);
    shared.dots[thread / 32][thread % 32] = dot;
    __syncthreads();
    if (thread < 2 * kChunk) {
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        sum += shared.dots[warp][thread];
      }
      shared.dots[0][thread] = sum;
    }
    __syncthreads();
  }
  if (inside) {
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      if (t < chunk.length) {
        float of_q = d_q[t], of_k = d_k[t];
        if (p.problem.l2norm) {
          const float f_q = factors[t], f_k = factors[kChunk + t];
          of_q = f_q *
                 (of_q - f_q * to_float(static_cast<const T*>(p.q)[row_at(t)]) * shared.dots[0][t]);
          of_k = f_k * (of_k - f_k * to_float(static_cast<const T*>(p.k)[row_at(t)]) *
                                   shared.dots[0][kChunk + t]);
        }
        static_cast<T*>(p.d_q)[row_at(t)] = from_float<T>(of_q);
        static_cast<T*>(p.d_k)[row_at(t)] = from_float<T>(of_k);
      }
    }
  }
}

}  // namespace

void gradients(const KimiDeltaRuleBackward& call, const Work& work, cudaStream_t stream) {
  GradientParams p{};
  p.problem = call.problem;
  p.work = work;
  p.q = call.inputs.q;
  p.k = call.inputs.k;
  p.alpha = static_cast<const float*>(call.inputs.alpha);
  p.d_o = call.d_o;
  p.d_q = call.d_q;
  p.d_k = call.d_k;
  p.d_alpha = static_cast<float*>(call.d_alpha);
  p.d_beta = static_cast<float*>(call.d_beta);
  const int64_t key_heads = work.heads / (call.problem.HV / call.problem.H);
  with_kernel(p.problem, [&](auto type, auto keys) {
    constexpr int kK = decltype(keys)::value;
    launch("launch of kimi_delta_rule gradients",
           gradients_kernel<typename decltype(type)::Type, kK>, work.table.max_chunks * key_heads,
           kThreads, sizeof(Shared<kK>), stream, p);
  });
}

}  // namespace mdn::kernels::cuda::kimi
