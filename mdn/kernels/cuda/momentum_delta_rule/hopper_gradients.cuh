// Backward pass, kernel 3 of 3: what is parallel over chunks. Reads the states that a chunk starts
// with, the gradients of those that it ends with, R and dW; writes dq, dk and the gates' gradients.
// No atomics: a block owns all of a chunk's sums.
//
// A block walks over (chunk, value head) items with three consumer warpgroups. It takes the key
// channels in tiles of 64; for each tile it sums over the value channels:
//
//     warpgroup 0 ("o")   oS = dO S0^T, oM = dO M0^T;   oR = dO R^T (first tile), P = Q K^T
//     warpgroup 1 ("w")   wS = dW S0^T, wM = dW M0^T;   F = dW R^T  (first tile), K K^T
//     warpgroup 2 ("r")   rS = R dS^T,  rM = R dM^T
//
// q and k are the rows as given; 1/|q_t| and 1/|k_t| are factors of the masks and vectors, so that
// all products see the raw rows and the results are the gradients of the raw rows but for the
// derivative of the norms, which finish_rows_kernel takes off. With rq, rk these factors:
//
//     dP[t,j] = scale rq_t rk_j eta_j oR[t,j] G[t,j]   (j <= t)
//     Z[t,j]  = -rk_t rk_j eta_j F[t,j] H[t,j]         (j < t)
//     dq = a oS - b oM + dP K;   dk = dP^T Q + (Z + Z^T) K - e wS + c wM + eta rk (g rS - n rM)
//
// Without momentum what has an M in its name is missing.
//
// The fourth warpgroup keeps everything serial away from the consumers: its first warp feeds the
// copy engine, the other three make the masks of the next item and run the reverse recurrence over
// the masks of the last one. While copies fill the memory system an ordinary load takes
// microseconds, so consumers touch global memory only to write.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/thread.cuh"

namespace mdn::kernels::cuda::backward_pass {

inline constexpr int kGradientThreads = 4 * 128;
inline constexpr int kConsumerThreads = 3 * 128;
inline constexpr int kMaskThreads = 96;
inline constexpr int kMaskThread = kGradientThreads - kMaskThreads;  // the first of them

template <bool kMomentum>
struct GradientsShared {
  static constexpr int kStages = 2;
  // Of a stage: S, M, dS, dM, dO, dW, R
  static constexpr int kBoxS = 0;
  static constexpr int kBoxM = kBoxS + 1;
  static constexpr int kBoxDS = kMomentum ? kBoxM + 1 : kBoxS + 1;
  static constexpr int kBoxDM = kBoxDS + 1;
  static constexpr int kBoxDO = kMomentum ? kBoxDM + 1 : kBoxDS + 1;
  static constexpr int kBoxR = kBoxDO + 2;
  static constexpr int kStageBoxes = kBoxR + 1;
  static constexpr int kStage = 0;
  static constexpr int kQK = kStage + kStages * kStageBoxes * kBox;  // q, k of the tile
  static constexpr int kDP = kQK + 2 * kBox;
  static constexpr int kZ = kDP + kBox;
  static constexpr int kVectors = kZ + kBox;
  static constexpr int kSmall = kVectors + 2 * kVectorBytes;
};

enum Gate { kAlpha, kMu, kEta, kBeta, kPi };

/// Two lower triangles in one array. Rows and columns count from 0, the chunk's start; token t of
/// the chunk (from 0) is row and column t + 1.
struct TrianglePair {
  static constexpr int kStride = 67;  // odd: no bank conflicts along rows or columns
  float x[65 * kStride];
  __device__ __forceinline__ float& lower(int t, int j) { return x[t * kStride + j]; }
  __device__ __forceinline__ float& upper(int t, int j) { return x[j * kStride + t + 1]; }
};

/// What the mask warps make of an item before the consumers need it.
struct GradientsItem {
  TrianglePair masks;                  // G below, Mu above
  alignas(16) float gates[5][kChunk];  // in the order of Gate
  float a[kChunk + 1];                 // alpha_1 ... alpha_t
  int length;
  int head;
  int64_t token;
};

/// The fp32 part of the block's shared memory.
struct GradientsSmall {
  GradientsItem items[2];
  // From the consumers to the mask warps:
  TrianglePair terms;  // dG below, dH above; then the products to sum
  float da[kChunk];    // direct gradient of a_t through the outputs
  float de[kChunk];    // of e_t = pi_t a_{t-1}
  float krS[kChunk];   // rk_j k_j . rS_j
  float krM[kChunk];
  float deta[8][kChunk];         // by the warps of warpgroups 0 and 1
  float dots[12];                // <dS,S>, <dS,M>, <dM,M> of the warps
  float a_terms[2][kChunk];      // the parts of dalpha and dpi that come through a
  float exchange[32 * 128];      // half of dk
  float gates_ahead[5][kChunk];  // on their way in
  alignas(16) Chunk chunks_ahead[2];
  uint64_t full[2];  // of the stages
  uint64_t empty[2];
  uint64_t vectors_full[2];
  uint64_t vectors_empty[2];
  uint64_t item_full[2];
  uint64_t qk_full, qk_empty, terms_full, terms_empty;
};
template <bool kMomentum>
inline constexpr int kGradientsBytes = GradientsShared<kMomentum>::kSmall +
                                       static_cast<int>(sizeof(GradientsSmall)) + 1024;
static_assert(kGradientsBytes<true> <= 232448,
              "more shared memory than a block of an H100 can have");

/// One thread feeds the copy engine. The chunk of the next item is read an item ahead.
template <bool kMomentum>
__device__ __forceinline__ void gradients_producer(const Arguments& args, uint8_t* shared,
                                                   GradientsSmall& small) {
  using L = GradientsShared<kMomentum>;
  const int tiles = args.K / 64;
  const int steps = args.V / 64;
  Ring<L::kStages> ring;
  Ring<1> qk;
  Ring<2> vectors;
  const int64_t items = args.entries * args.heads;
  Chunk chunk = args.chunks[blockIdx.x / args.heads];
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t entry = item / args.heads;
    if (chunk.length == 0) {
      return;
    }
    const int64_t next = item + gridDim.x;
    const Chunk next_chunk = args.chunks[next < items ? next / args.heads : entry];
    const int head = args.head + static_cast<int>(item % args.heads);
    const int token = static_cast<int>(chunk.token);
    ptx::mbarrier_wait(&small.vectors_empty[vectors.stage], vectors.phase ^ 1);
    ptx::mbarrier_arrive_expect(&small.vectors_full[vectors.stage], kVectorBytes);
    ptx::bulk_load(shared + L::kVectors + vectors.stage * kVectorBytes,
                   args.records + (entry * args.HV + head) * kRecordBytes + kRecordVectors,
                   kVectorBytes, &small.vectors_full[vectors.stage]);
    vectors.next();
    for (int tile = 0; tile < tiles; ++tile) {
      for (int step = 0; step < steps; ++step) {
        uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
        uint64_t* barrier = &small.full[ring.stage];
        ptx::mbarrier_wait(&small.empty[ring.stage], ring.phase ^ 1);
        ptx::mbarrier_arrive_expect(barrier, L::kStageBoxes * kBox);
        const int64_t at = ((item * steps + step) * tiles + tile) * kBox;
        ptx::bulk_load(stage + L::kBoxS * kBox, args.S + at, kBox, barrier);
        ptx::bulk_load(stage + L::kBoxDS * kBox, args.dS + at, kBox, barrier);
        if constexpr (kMomentum) {
          ptx::bulk_load(stage + L::kBoxM * kBox, args.M + at, kBox, barrier);
          ptx::bulk_load(stage + L::kBoxDM * kBox, args.dM + at, kBox, barrier);
        }
        ptx::tma_load(stage + L::kBoxDO * kBox, &args.d_o, barrier, 64 * step, head, token);
        ptx::tma_load(stage + (L::kBoxDO + 1) * kBox, &args.d_v, barrier, 64 * step, head, token);
        ptx::bulk_load(stage + L::kBoxR * kBox, args.R + (item * steps + step) * kBox, kBox,
                       barrier);
        ring.next();
        if (step == (steps == 1 ? 0 : 1)) {  // the ring is full now: not in its way
          ptx::mbarrier_wait(&small.qk_empty, qk.phase ^ 1);
          ptx::mbarrier_arrive_expect(&small.qk_full, 2 * kBox);
          ptx::tma_load(shared + L::kQK, &args.q, &small.qk_full, 64 * tile, head / args.group,
                        token);
          ptx::tma_load(shared + L::kQK + kBox, &args.k, &small.qk_full, 64 * tile,
                        head / args.group, token);
          qk.next();
        }
      }
    }
    chunk = next_chunk;
  }
}

/// This thread's part of the sum of x y over two boxes of E.
template <class E>
__device__ __forceinline__ float box_dot(const uint8_t* x, const uint8_t* y, int thread) {
  float sum = 0.0F;
#pragma unroll 1  // registers are scarce here
  for (int i = 0; i < 4; ++i) {
    const uint4 u = *reinterpret_cast<const uint4*>(x + (i * 128 + thread) * 16);
    const uint4 w = *reinterpret_cast<const uint4*>(y + (i * 128 + thread) * 16);
    const uint32_t us[4] = {u.x, u.y, u.z, u.w};
    const uint32_t ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 p = ptx::unpack<E>(us[j]);
      const float2 r = ptx::unpack<E>(ws[j]);
      sum += p.x * r.x + p.y * r.y;
    }
  }
  return sum;
}

/// dots[i] += this thread's part of row i's product of accumulators and a box with the same rows.
template <class E>
__device__ __forceinline__ void row_dots(float (&dots)[2], const float (&d)[32], const uint8_t* box,
                                         int warp, int lane) {
  const uint8_t* row = box + (16 * warp + lane / 4) * 128 + (lane % 4) * 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 x = ptx::unpack<E>(
          *reinterpret_cast<const uint32_t*>(row + i * 1024 + ((j ^ (lane / 4)) * 16)));
      dots[i] += d[4 * j + 2 * i] * x.x + d[4 * j + 2 * i + 1] * x.y;
    }
  }
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFU, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFU, x, 2);
}

/// Rows of dq or dk, this thread's columns of one tile, to global memory. `out` points at the
/// thread's first column in the chunk's first token; rows past `length` are not written.
template <class Out>
__device__ __forceinline__ void store_rows(Out* out, int64_t row_stride, const float (&d)[32],
                                           int row, int length) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (row + 8 * i < length) {
      Out* at = out + (row + 8 * i) * row_stride;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float x = d[4 * j + 2 * i];
        const float y = d[4 * j + 2 * i + 1];
        if constexpr (sizeof(Out) == 4) {
          *reinterpret_cast<float2*>(at + 8 * j) = float2{x, y};
        } else {
          *reinterpret_cast<uint32_t*>(at + 8 * j) = ptx::pack<Out>(x, y);
        }
      }
    }
  }
}

/// Where an item's rows of dq or dk are.
template <class Out>
struct GradientRows {
  int64_t stride;
  Out* out;
  __device__ __forceinline__ GradientRows(const Arguments& args, const GradientsItem& item,
                                          void* d) {
    const int heads = args.partial ? args.HV : args.HV / args.group;
    const int head = args.partial ? item.head : item.head / args.group;
    stride = static_cast<int64_t>(heads) * args.K;
    out = static_cast<Out*>(d) + item.token * stride + static_cast<int64_t>(head) * args.K;
  }
};

/// Mu and G of column j: the response to write j (0: to the initial M).
///     Mu[t,j] = mu_t Mu[t-1,j];   G[t,j] = alpha_t G[t-1,j] + beta_t Mu[t,j]
/// The prediction's mask H[t,j] = pi_t G[t-1,j] is made where it is needed. Thread 65: the products
/// of alpha.
__device__ __forceinline__ void make_masks(GradientsItem& item, int j) {
  if (j == kChunk + 1) {
    float a = 1.0F;
    item.a[0] = a;
    for (int t = 0; t < kChunk; t += 4) {
      const float4 alpha = *reinterpret_cast<const float4*>(&item.gates[kAlpha][t]);
      item.a[t + 1] = a *= alpha.x;
      item.a[t + 2] = a *= alpha.y;
      item.a[t + 3] = a *= alpha.z;
      item.a[t + 4] = a *= alpha.w;
    }
  } else if (j <= kChunk) {
    float Mu = j == 0 ? 1.0F : 0.0F;
    float G = 0.0F;
    if (j == 0) {
      item.masks.lower(0, 0) = G;
      item.masks.upper(0, 0) = Mu;
    }
#pragma unroll 1
    for (int t = 0; t < kChunk; t += 4) {
      const float4 alpha4 = *reinterpret_cast<const float4*>(&item.gates[kAlpha][t]);
      const float4 mu4 = *reinterpret_cast<const float4*>(&item.gates[kMu][t]);
      const float4 beta4 = *reinterpret_cast<const float4*>(&item.gates[kBeta][t]);
      const float alpha[4] = {alpha4.x, alpha4.y, alpha4.z, alpha4.w};
      const float mu[4] = {mu4.x, mu4.y, mu4.z, mu4.w};
      const float beta[4] = {beta4.x, beta4.y, beta4.z, beta4.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = t + i + 1;
        Mu = row == j ? 1.0F : mu[i] * Mu;
        G = alpha[i] * G + beta[i] * Mu;
        if (row >= j) {
          item.masks.lower(row, j) = G;
          item.masks.upper(row, j) = Mu;
        }
      }
    }
  }
}

/// The reverse recurrence over column j, and for thread 65 over a. Leaves in the place of dG, dH,
/// Mu, G the terms of dalpha, dpi, dbeta, dmu, to be summed over each row.
__device__ __forceinline__ void masks_backward(GradientsSmall& small, GradientsItem& item, int j) {
  const float* dots = small.dots;
  if (j == kChunk + 1) {
    float carry = dots[0] + dots[1] + dots[2] + dots[3];  // da_C += <dS,S>
#pragma unroll 4
    for (int t = kChunk - 1; t >= 0; --t) {
      const float a = item.a[t];
      const float da = carry + small.da[t];
      const float de = small.de[t];
      carry = item.gates[kAlpha][t] * da + item.gates[kPi][t] * de;
      small.a_terms[0][t] = da * a;
      small.a_terms[1][t] = de * a;
    }
  } else if (j <= kChunk) {
    // dG[C,j] += eta_j rk_j k_j . rS_j, dMu[C,j] -= eta_j rk_j k_j . rM_j; column 0: the states
    float carry_G;
    float carry_Mu;
    if (j == 0) {
      carry_G = -(dots[4] + dots[5] + dots[6] + dots[7]);
      carry_Mu = dots[8] + dots[9] + dots[10] + dots[11];
    } else {
      const float eta = item.gates[kEta][j - 1];
      carry_G = eta * small.krS[j - 1];
      carry_Mu = -eta * small.krM[j - 1];
    }
    float Mu = item.masks.upper(kChunk, j);
    const int last = j == 0 ? 1 : j;
#pragma unroll 1
    for (int t = kChunk; t >= last; t -= 2) {
      float dG[2];
      float dH[2];
      float G_before[2];
      float Mu_before[2];
      float gates[4][2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = t - i;
        const bool in = row >= last;
        const bool before = in && row > j;
        dG[i] = in ? small.terms.lower(row, j) : 0.0F;
        dH[i] = before ? small.terms.upper(row, j) : 0.0F;
        G_before[i] = before ? item.masks.lower(row - 1, j) : 0.0F;
        Mu_before[i] = before ? item.masks.upper(row - 1, j) : 0.0F;
      }
      const float2 alpha = *reinterpret_cast<const float2*>(&item.gates[kAlpha][t - 2]);
      const float2 mu = *reinterpret_cast<const float2*>(&item.gates[kMu][t - 2]);
      const float2 beta = *reinterpret_cast<const float2*>(&item.gates[kBeta][t - 2]);
      const float2 pi = *reinterpret_cast<const float2*>(&item.gates[kPi][t - 2]);
      gates[0][0] = alpha.y;
      gates[0][1] = alpha.x;
      gates[1][0] = mu.y;
      gates[1][1] = mu.x;
      gates[2][0] = beta.y;
      gates[2][1] = beta.x;
      gates[3][0] = pi.y;
      gates[3][1] = pi.x;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = t - i;
        const float gG = carry_G + dG[i];
        const float gMu = carry_Mu + gates[2][i] * gG;
        carry_G = gates[0][i] * gG + gates[3][i] * dH[i];
        carry_Mu = gates[1][i] * gMu;
        if (row >= last) {
          small.terms.lower(row, j) = gG * G_before[i];
          item.masks.upper(row, j) = gG * Mu;
          item.masks.lower(row, j) = gMu * Mu_before[i];
        }
        if (row >= last && row > j) {
          small.terms.upper(row, j) = dH[i] * G_before[i];
        }
        Mu = Mu_before[i];
      }
    }
  }
}

/// Starts loading the chunk of item `index` (one thread); a length of 0 says that there is none.
__device__ __forceinline__ void fetch_chunk(const Arguments& args, Chunk& to, int64_t index,
                                            int64_t items) {
  if (index < items) {
    const Chunk* from = args.chunks + index / args.heads;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::async_copy_word(reinterpret_cast<uint32_t*>(&to) + i,
                           reinterpret_cast<const uint32_t*>(from) + i);
    }
  } else {
    to.length = 0;
  }
}

/// Starts loading this thread's gates of an item: they are taken up an item later. Tokens past the
/// end leave everything as it is.
__device__ __forceinline__ void fetch_gates(const Arguments& args, GradientsSmall& small,
                                            const Chunk& chunk, int64_t index, int thread) {
  if (thread >= kChunk) {
    return;
  }
  const int head = args.head + static_cast<int>(index % args.heads);
  const int64_t at = (chunk.token + thread) * args.HV + head;
#pragma unroll
  for (int gate = 0; gate < 5; ++gate) {
    const float* from = gate == kAlpha       ? args.alpha
                        : gate == kMu        ? args.mu
                        : gate == kEta       ? args.eta
                        : gate == kBeta      ? args.beta
                        : args.pi != nullptr ? args.pi
                                             : args.alpha;
    float* to = &small.gates_ahead[gate][thread];
    if (thread >= chunk.length) {
      *to = gate == kEta || gate == kBeta ? 0.0F : 1.0F;
    } else if (from == nullptr) {  // mu, without momentum
      *to = 0.0F;
    } else {
      ptx::async_copy_word(to, from + at);
    }
  }
}

/// The fetched chunk and gates and the masks, into `item`.
__device__ __forceinline__ void prepare_item(const Arguments& args, GradientsSmall& small,
                                             GradientsItem& item, const Chunk& chunk, int64_t index,
                                             int thread) {
  ptx::async_copy_wait();
  if (thread == 0) {
    item.length = chunk.length;
    item.head = args.head + static_cast<int>(index % args.heads);
    item.token = chunk.token;
  }
  if (thread < kChunk) {
#pragma unroll
    for (int gate = 0; gate < 5; ++gate) {
      item.gates[gate][thread] = small.gates_ahead[gate][thread];
    }
  }
  ptx::named_barrier(4, kMaskThreads);
  make_masks(item, thread);
}

/// The gates' gradients of an item, from what the consumers left.
__device__ __forceinline__ void finish_item(const Arguments& args, GradientsSmall& small,
                                            GradientsItem& item, int thread) {
  const int length = item.length;
  const int64_t at = (item.token + thread) * args.HV + item.head;
  if (thread < length) {
    // the masks' part comes with the consumers' sums; here the end row of G and Mu
    float sum = item.masks.lower(kChunk, thread + 1) * small.krS[thread] -
                item.masks.upper(kChunk, thread + 1) * small.krM[thread];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      sum += small.deta[i][thread];
    }
    args.d_eta[at] = sum;
  }
  ptx::named_barrier(4, kMaskThreads);
  masks_backward(small, item, thread);
  ptx::named_barrier(4, kMaskThreads);
  if (thread < length) {
    const int t = thread + 1;
    float alpha = small.a_terms[0][thread];
    float pi = small.a_terms[1][thread];
    float mu = 0.0F;
    float beta = 0.0F;
#pragma unroll 4
    for (int j = 0; j <= kChunk; ++j) {
      if (j <= t) {
        alpha += small.terms.lower(t, j);
        mu += item.masks.lower(t, j);
        beta += item.masks.upper(t, j);
      }
      if (j < t) {
        pi += small.terms.upper(t, j);
      }
    }
    args.d_alpha[at] = args.d_pi == nullptr ? alpha + pi : alpha;  // pi is alpha
    if (args.d_mu != nullptr) {
      args.d_mu[at] = mu;
    }
    args.d_beta[at] = beta;
    if (args.d_pi != nullptr) {
      args.d_pi[at] = pi;
    }
  }
}

/// The three mask warps: an item ahead of the consumers and one behind. Global memory answers late
/// beside the copies, so an item's chunk is asked for two items ahead and its gates one.
__device__ __forceinline__ void gradients_masks(const Arguments& args, GradientsSmall& small) {
  const int thread = static_cast<int>(threadIdx.x) - kMaskThread;
  const int64_t items = args.entries * args.heads;
  const int64_t stride = gridDim.x;
  int64_t index = blockIdx.x;
  Chunk* ahead = small.chunks_ahead;  // the next item's and the one's after it
  if (thread == 0) {
    fetch_chunk(args, ahead[1], index, items);
    fetch_chunk(args, ahead[0], index + stride, items);
    ptx::async_copy_wait();
  }
  ptx::named_barrier(4, kMaskThreads);
  fetch_gates(args, small, ahead[1], index, thread);
  prepare_item(args, small, small.items[0], ahead[1], index, thread);
  ptx::mbarrier_arrive(&small.item_full[0]);
  fetch_gates(args, small, ahead[0], index + stride, thread);
  if (thread == 0) {
    fetch_chunk(args, ahead[1], index + 2 * stride, items);
  }
  for (uint32_t turn = 0; index < items; turn ^= 1) {
    ptx::named_barrier(4, kMaskThreads);  // the place of the first item, then the sums of the last
    if (small.items[turn].length == 0) {
      return;
    }
    if (index + stride < items) {
      prepare_item(args, small, small.items[turn ^ 1], ahead[turn], index + stride, thread);
      ptx::mbarrier_arrive(&small.item_full[turn ^ 1]);
      fetch_gates(args, small, ahead[turn ^ 1], index + 2 * stride, thread);
      if (thread == 0) {
        fetch_chunk(args, ahead[turn], index + 3 * stride, items);
      }
    }
    ptx::mbarrier_wait(&small.terms_full, turn);
    finish_item(args, small, small.items[turn], thread);
    ptx::mbarrier_arrive(&small.terms_empty);
    index += stride;
  }
}

/// One step of 64 value channels: A += a S or a dS, B likewise with M or dM, and with kFirst oR or
/// F.
template <class E, int kRole, bool kFirst, bool kMomentum>
__device__ __forceinline__ void multiply_states(float (&A)[32], float (&B)[32], float (&X)[32],
                                                uint32_t boxes, int accumulate) {
  using L = GradientsShared<kMomentum>;
  const uint32_t a_box = boxes + (L::kBoxDO + kRole) * kBox;
  const uint32_t s_box = boxes + (kRole == 2 ? L::kBoxDS : L::kBoxS) * kBox;
  ptx::wgmma_touch(A);
  if constexpr (kMomentum) {
    ptx::wgmma_touch(B);
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint64_t a = ptx::descriptor_k(a_box + 32 * i);
    ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
        A, a, ptx::descriptor_mn(s_box + 2048 * i, kBox), accumulate | (i > 0));
    if constexpr (kMomentum) {
      ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
          B, a, ptx::descriptor_mn(s_box + kBox + 2048 * i, kBox), accumulate | (i > 0));
    }
    if constexpr (kFirst && kRole < 2) {
      ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(
          X, a, ptx::descriptor_k(boxes + L::kBoxR * kBox + 32 * i), accumulate | (i > 0));
    }
  }
  ptx::wgmma_commit();
}

template <class E, class Out, int role, bool kMomentum>
__device__ __forceinline__ void gradients_consumer(const Arguments& args, uint8_t* shared,
                                                   GradientsSmall& small) {
  using L = GradientsShared<kMomentum>;
  constexpr int kAll = 1;   // barrier of the three warpgroups
  constexpr int kKeys = 2;  // of warpgroups 1 and 2
  const int tiles = args.K / 64;
  const int steps = args.V / 64;
  uint8_t* q_tile = shared + L::kQK;
  uint8_t* k_tile = q_tile + kBox;
  const uint8_t* mine = role == 0 ? q_tile : k_tile;
  const uint32_t q_box = ptx::shared_address(q_tile);
  const uint32_t k_box = q_box + kBox;
  const uint32_t dp_box = ptx::shared_address(shared + L::kDP);
  const uint32_t z_box = dp_box + kBox;

  Ring<L::kStages> ring;
  Ring<2> buffers;
  uint32_t qk_phase = 0;
  uint32_t terms_phase = 1;
  const int64_t items = args.entries * args.heads;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    GradientsItem& item = small.items[buffers.stage];
    const auto* vectors =
        reinterpret_cast<const ChunkVectors*>(shared + L::kVectors + buffers.stage * kVectorBytes);
    ptx::mbarrier_wait(&small.item_full[buffers.stage], buffers.phase);
    const int length = item.length;
    if (length == 0) {
      return;
    }

    float A[32];   // against S or dS
    float B[32];   // against M or dM; nothing without momentum
    float X[32];   // oR or F
    float PK[32];  // P or K K^T
    float dots_S[2] = {0.0F, 0.0F};
    float dots_M[2] = {0.0F, 0.0F};
    float state_dot = 0.0F;

    // The sums over the value channels of one tile of key channels.
    const auto sum_values = [&]<bool kFirst>() {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const int thread = ptx::fresh_thread_index() % 128;
        const uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
        ptx::mbarrier_wait(&small.full[ring.stage], ring.phase);
        multiply_states<E, role, kFirst, kMomentum>(A, B, X, ptx::shared_address(stage), step > 0);
        // <dS,S>, <dS,M>, <dM,M>, one a warpgroup
        if constexpr (kMomentum || role == 0) {
          state_dot += box_dot<E>(stage + (role == 2 ? L::kBoxDM : L::kBoxDS) * kBox,
                                  stage + (role == 0 ? L::kBoxS : L::kBoxM) * kBox, thread);
        }
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(A);
        if constexpr (kMomentum) {
          ptx::wgmma_touch(B);
        }
        if constexpr (kFirst && role < 2) {
          ptx::wgmma_touch(X);
        }
        ptx::mbarrier_arrive(&small.empty[ring.stage]);
        ring.next();
      }
    };
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile == 0) {
        sum_values.template operator()<true>();
      } else {
        sum_values.template operator()<false>();
      }

      const int thread = ptx::fresh_thread_index() % 128;
      const int warp = thread / 32;
      const int lane = thread % 32;
      const int row = 16 * warp + lane / 4;  // and row + 8: this thread's rows of accumulators
      const int column = 2 * (lane % 4);
      ptx::mbarrier_wait(&small.qk_full, qk_phase);
      qk_phase ^= 1;
      if constexpr (role < 2) {  // P += Q K^T or K K^T
        ptx::wgmma_touch(PK);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(
              PK, ptx::descriptor_k((role == 0 ? q_box : k_box) + 32 * i),
              ptx::descriptor_k(k_box + 32 * i), tile > 0 || i > 0);
        }
        ptx::wgmma_commit();
      }
      row_dots<E>(dots_S, A, mine, warp, lane);
      if constexpr (kMomentum) {
        row_dots<E>(dots_M, B, mine, warp, lane);
      }
      if constexpr (role < 2) {
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(PK);
      }

      if (tile == 0) {
        ptx::mbarrier_wait(&small.vectors_full[buffers.stage], buffers.phase);
        ptx::named_barrier(kAll, kConsumerThreads);  // the last item's dP and Z have been read
        if constexpr (role < 2) {                    // dP or Z
          const uint32_t row_address = (role == 0 ? dp_box : z_box) + (16 * warp + lane % 16) * 128;
          float row_scale[2];
          const float* mask[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int t = row + 8 * i;
            row_scale[i] = t >= length ? 0.0F
                           : role == 0 ? args.scale * vectors->rq[t]
                                       : -item.gates[kPi][t] * vectors->rk[t];
            mask[i] = &item.masks.lower(role == 0 ? t + 1 : t, 1);
          }
#pragma unroll
          for (int j = 0; j < 8; j += 2) {
            uint32_t words[4];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int s = 8 * (j + h) + column;
              const float2 rk = parts::column_pair(vectors->rk + column, j + h);
              const float2 eta = parts::column_pair(item.gates[kEta] + column, j + h);
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                const int end = row + 8 * i + (role == 0 ? 1 : 0);  // columns below it are in
                const int at = 4 * (j + h) + 2 * i;
                const float x = s < end ? row_scale[i] * rk.x * eta.x * X[at] * mask[i][s] : 0.0F;
                const float y =
                    s + 1 < end ? row_scale[i] * rk.y * eta.y * X[at + 1] * mask[i][s + 1] : 0.0F;
                words[2 * h + i] = ptx::pack<E>(x, y);
              }
            }
            ptx::stmatrix(row_address + ((j + lane / 16) ^ (lane % 8)) * 16, words[0], words[1],
                          words[2], words[3]);
          }
          ptx::fence_async_shared();
        }
        ptx::named_barrier(kAll, kConsumerThreads);
      }

      // Rows: dq = a oS - b oM + ..., dk = -e wS + c wM + ... and eta rk (g rS - n rM) + ...
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i;
        float f;
        [[maybe_unused]] float h;
        if constexpr (role == 0) {
          f = vectors->a[t];
          h = -vectors->b[t];
        } else if constexpr (role == 1) {
          f = -vectors->e[t];
          h = vectors->c[t];
        } else {
          const float write = item.gates[kEta][t] * vectors->rk[t];
          f = write * item.masks.lower(kChunk, t + 1);
          h = -write * item.masks.upper(kChunk, t + 1);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int at = 4 * j + 2 * i;
          if constexpr (kMomentum) {
            A[at] = f * A[at] + h * B[at];
            A[at + 1] = f * A[at + 1] + h * B[at + 1];
          } else {
            A[at] *= f;
            A[at + 1] *= f;
          }
        }
      }
      ptx::wgmma_touch(A);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (role == 0) {  // dP K
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
              A, ptx::descriptor_k(dp_box + 32 * i), ptx::descriptor_mn(k_box + 2048 * i, kBox));
        } else if constexpr (role == 1) {  // (Z + Z^T) K
          const uint64_t b = ptx::descriptor_mn(k_box + 2048 * i, kBox);
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(A, ptx::descriptor_k(z_box + 32 * i),
                                                            b);
          ptx::wgmma_sa<E, ptx::Major::kMN, ptx::Major::kMN>(
              A, ptx::descriptor_mn(z_box + 2048 * i, kBox), b);
        } else {  // dP^T Q
          ptx::wgmma_sa<E, ptx::Major::kMN, ptx::Major::kMN>(
              A, ptx::descriptor_mn(dp_box + 2048 * i, kBox),
              ptx::descriptor_mn(q_box + 2048 * i, kBox));
        }
      }
      ptx::wgmma_commit();
      ptx::wgmma_wait<0>();
      ptx::wgmma_touch(A);
      if constexpr (role == 1) {
        ptx::named_barrier(kKeys, 256);  // the last tile's half has been read
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          small.exchange[i * 128 + thread] = A[i];
        }
        ptx::named_barrier(kKeys, 256);
      } else {
        if constexpr (role == 2) {
          ptx::named_barrier(kKeys, 256);
          ptx::named_barrier(kKeys, 256);
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            A[i] += small.exchange[i * 128 + thread];
          }
        }
        const GradientRows<Out> rows(args, item, role == 0 ? args.d_q : args.d_k);
        store_rows<Out>(rows.out + column + 64 * tile, rows.stride, A, row, length);
      }
      ptx::mbarrier_arrive(&small.qk_empty);
    }

    const int thread = ptx::fresh_thread_index() % 128;
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int row = 16 * warp + lane / 4;  // and row + 8: this thread's rows of accumulators
    const int column = 2 * (lane % 4);
    for (int offset = 16; offset > 0; offset /= 2) {
      state_dot += __shfl_xor_sync(0xFFFFFFFFU, state_dot, offset);
    }

    // To the mask warps: row dot products of all of K, then dG = Y o P and dH = E o K K^T.
    ptx::mbarrier_wait(&small.terms_empty, terms_phase);
    terms_phase ^= 1;
    if (lane == 0) {
      small.dots[4 * role + warp] = state_dot;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      const float S = quad_sum(dots_S[i]);
      const float M = quad_sum(dots_M[i]);
      if (lane % 4 == 0) {
        const float f = t >= length ? 0.0F
                        : role == 0 ? args.scale * vectors->rq[t]
                                    : vectors->rk[t];
        if constexpr (role == 0) {
          small.da[t] = t < length ? f * S : 0.0F;
          small.terms.lower(t + 1, 0) = t < length ? -f * M : 0.0F;  // db
        } else if constexpr (role == 1) {
          small.de[t] = t < length ? -f * S : 0.0F;
          small.terms.upper(t + 1, 0) = t < length ? f * M : 0.0F;  // dc
        } else {
          small.krS[t] = t < length ? f * S : 0.0F;
          small.krM[t] = t < length ? f * M : 0.0F;
        }
      }
    }
    if constexpr (role < 2) {
      float row_scale[2];
      float mask_scale[2];
      const float* mask[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i;
        row_scale[i] = t >= length ? 0.0F
                       : role == 0 ? args.scale * vectors->rq[t]
                                   : -vectors->rk[t];
        mask_scale[i] = role == 0 ? 1.0F : item.gates[kPi][t];
        mask[i] = &item.masks.lower(role == 0 ? t + 1 : t, 1);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 rk2 = parts::column_pair(vectors->rk + column, j);
        const float2 eta2 = parts::column_pair(item.gates[kEta] + column, j);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int s = 8 * j + column + h;
          const float rk = h == 0 ? rk2.x : rk2.y;
          const float eta = h == 0 ? eta2.x : eta2.y;
          float sum = 0.0F;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int t = row + 8 * i;
            const int at = 4 * j + 2 * i + h;
            if (s < t + (role == 0 ? 1 : 0)) {
              const float y = row_scale[i] * rk * X[at] * PK[at];
              sum += y * mask_scale[i] * mask[i][s];
              if constexpr (role == 0) {
                small.terms.lower(t + 1, s + 1) = eta * y;
              } else {
                small.terms.upper(t + 1, s + 1) = eta * y;
              }
            }
          }
          sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 4);
          sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 8);
          sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 16);
          if (lane < 4) {
            small.deta[4 * role + warp][s] = sum;
          }
        }
      }
    }
    ptx::mbarrier_arrive(&small.terms_full);
    ptx::mbarrier_arrive(&small.vectors_empty[buffers.stage]);
    buffers.next();
  }
}

template <class E, class Out, bool kMomentum>
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradients_kernel(const __grid_constant__ Arguments args) {
  using L = GradientsShared<kMomentum>;
  extern __shared__ uint8_t memory[];
  uint8_t* shared = memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
  auto& small = *reinterpret_cast<GradientsSmall*>(shared + L::kSmall);
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      ptx::mbarrier_init(&small.full[i], 1);
      ptx::mbarrier_init(&small.empty[i], kConsumerThreads);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&small.vectors_full[i], 1);
      ptx::mbarrier_init(&small.vectors_empty[i], kConsumerThreads);
      ptx::mbarrier_init(&small.item_full[i], kMaskThreads);
    }
    ptx::mbarrier_init(&small.qk_full, 1);
    ptx::mbarrier_init(&small.qk_empty, kConsumerThreads);
    ptx::mbarrier_init(&small.terms_full, kConsumerThreads);
    ptx::mbarrier_init(&small.terms_empty, kMaskThreads);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == 3) {
    ptx::registers_decrease<48>();
    if (threadIdx.x >= kMaskThread) {
      gradients_masks(args, small);
    } else if (threadIdx.x == kConsumerThreads) {
      gradients_producer<kMomentum>(args, shared, small);
    }
  } else if (warpgroup == 0) {
    ptx::registers_increase<160>();
    gradients_consumer<E, Out, 0, kMomentum>(args, shared, small);
  } else if (warpgroup == 1) {
    ptx::registers_increase<160>();
    gradients_consumer<E, Out, 1, kMomentum>(args, shared, small);
  } else {
    ptx::registers_increase<144>();
    gradients_consumer<E, Out, 2, kMomentum>(args, shared, small);
  }
}

/// Rows of dq or dk: the sum over the group's value heads in a fixed order, then, with `raw`, the
/// derivative of the norm: with y the gradient of the raw row x at fixed norm and r^2 = 1 / (|x|^2
/// + eps), dx = y - x r^2 (x . y). A warp a row of K channels; `from` may be `d` itself.
template <class E, class From>
__global__ void __launch_bounds__(256)
    finish_rows_kernel(const From* from, const E* __restrict__ raw, E* d, int64_t rows, int K,
                       int group) {
  const int64_t row = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= rows) {
    return;
  }
  const int pairs = K / 64;  // of channels, a lane
  float2 y[4];
  float2 x[4];
  float dot = 0.0F;
  float norm = 0.0F;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < pairs) {
      const int channel = 64 * i + 2 * lane;
      if (raw != nullptr) {
        x[i] = ptx::unpack<E>(*reinterpret_cast<const uint32_t*>(raw + row * K + channel));
      }
      if constexpr (sizeof(From) == 4) {
        y[i] = float2{0.0F, 0.0F};
        for (int h = 0; h < group; ++h) {
          const float2 part = *reinterpret_cast<const float2*>(
              reinterpret_cast<const float*>(from) + (row * group + h) * K + channel);
          y[i].x += part.x;
          y[i].y += part.y;
        }
      } else {
        y[i] = ptx::unpack<From>(*reinterpret_cast<const uint32_t*>(from + row * K + channel));
      }
      if (raw != nullptr) {
        dot += x[i].x * y[i].x + x[i].y * y[i].y;
        norm += x[i].x * x[i].x + x[i].y * x[i].y;
      }
    }
  }
  float factor = 0.0F;
  if (raw != nullptr) {
    for (int offset = 16; offset > 0; offset /= 2) {
      dot += __shfl_xor_sync(0xFFFFFFFFU, dot, offset);
      norm += __shfl_xor_sync(0xFFFFFFFFU, norm, offset);
    }
    factor = dot / (norm + static_cast<float>(kL2NormEps));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < pairs) {
      if (raw != nullptr) {
        y[i].x -= factor * x[i].x;
        y[i].y -= factor * x[i].y;
      }
      *reinterpret_cast<uint32_t*>(d + row * K + 64 * i + 2 * lane) = ptx::pack<E>(y[i].x, y[i].y);
    }
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
