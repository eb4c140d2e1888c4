// The mask warps of the gradients kernel (hopper_gradients.cuh): they draw the block's items, make
// the masks of the next one, and run the reverse recurrence over the masks of the last one.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_gradients_shared.cuh"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"

namespace mdn::kernels::cuda::backward_pass {

/// Draws the block's n-th item, `index` of all; one thread. Equal sequences: last chunks first, as
/// the chain makes them, of those pairs of sequence and head first whose states are made from the
/// start; packed sequences in their order.
__device__ __forceinline__ void take_item(const Arguments& args, GradientsSmall& small, uint32_t n,
                                          int64_t index) {
  GradientsWork work{0, 0, 0, 0, 0};
  if (index < args.entries * args.heads) {
    int pair = static_cast<int>(index);
    if (args.chunks_a_row == 0) {
      const Chunk chunk = args.chunks[pair / args.heads];
      work.entry = pair / args.heads;
      work.token = chunk.token;
      work.length = chunk.length;
    } else {
      const int chunks = args.chunks_a_row;
      const int early = args.early_pairs;
      const bool late = pair >= early * chunks;
      pair -= late ? early * chunks : 0;
      const int pairs = late ? static_cast<int>(args.entries) / chunks * args.heads - early : early;
      const int chunk = chunks - 1 - pair / pairs;
      pair = pair % pairs + (late ? early : 0);
      const int row = pair / args.heads;
      work.entry = row * chunks + chunk;
      work.token = int64_t{row} * args.tokens_a_row + chunk * kChunk;
      work.length = min(kChunk, args.tokens_a_row - chunk * kChunk);
    }
    work.head = args.head + pair % args.heads;
    work.index = work.entry * args.heads + (work.head - args.head);
  }
  small.work[n % 4] = work;
  ptx::mbarrier_arrive(&small.work_full[n % 4]);
}

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

/// Starts loading this thread's gates of an item: they are taken up an item later. Tokens past the
/// end leave everything as it is.
__device__ __forceinline__ void fetch_gates(const Arguments& args, GradientsSmall& small,
                                            const GradientsWork& work, int thread) {
  if (thread >= kChunk) {
    return;
  }
  const int64_t at = (work.token + thread) * args.HV + work.head;
#pragma unroll
  for (int gate = 0; gate < 5; ++gate) {
    const float* from = gate == kAlpha       ? args.alpha
                        : gate == kMu        ? args.mu
                        : gate == kEta       ? args.eta
                        : gate == kBeta      ? args.beta
                        : args.pi != nullptr ? args.pi
                                             : args.alpha;
    float* to = &small.gates_ahead[gate][thread];
    if (thread >= work.length) {
      *to = gate == kEta || gate == kBeta ? 0.0F : 1.0F;
    } else if (from == nullptr) {  // mu, without momentum
      *to = 0.0F;
    } else {
      ptx::async_copy_word(to, from + at);
    }
  }
}

/// The fetched gates and the masks, into `item`.
__device__ __forceinline__ void prepare_item(GradientsSmall& small, GradientsItem& item,
                                             const GradientsWork& work, int thread) {
  ptx::async_copy_wait();
  if (thread == 0) {
    item.index = work.index;
    item.length = work.length;
    item.head = work.head;
    item.token = work.token;
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
/// beside the copies, so an item is drawn two items ahead, and its gates are asked for then.
__device__ __forceinline__ void gradients_masks(const Arguments& args, GradientsSmall& small) {
  const int thread = static_cast<int>(threadIdx.x) - kMaskThread;
  if (thread == 0) {  // the first item is the block's own, the others are drawn
    take_item(args, small, 0, blockIdx.x);
    take_item(args, small, 1, int64_t{gridDim.x} + atomicAdd(args.taken, 1U));
  }
  ptx::named_barrier(4, kMaskThreads);
  fetch_gates(args, small, small.work[0], thread);
  prepare_item(small, small.items[0], small.work[0], thread);
  ptx::mbarrier_arrive(&small.item_full[0]);
  fetch_gates(args, small, small.work[1], thread);
  for (uint32_t n = 0;; ++n) {
    ptx::named_barrier(4, kMaskThreads);  // the place of the first item, then the sums of the last
    GradientsItem& item = small.items[n % 2];
    if (item.length == 0) {
      return;
    }
    const uint32_t ticket = thread == 0 ? atomicAdd(args.taken, 1U) : 0;
    prepare_item(small, small.items[(n + 1) % 2], small.work[(n + 1) % 4], thread);
    ptx::mbarrier_arrive(&small.item_full[(n + 1) % 2]);
    if (thread == 0) {
      take_item(args, small, n + 2, int64_t{gridDim.x} + ticket);
    }
    ptx::named_barrier(4, kMaskThreads);
    fetch_gates(args, small, small.work[(n + 2) % 4], thread);
    ptx::mbarrier_wait(&small.terms_full, n & 1);
    finish_item(args, small, item, thread);
    ptx::mbarrier_arrive(&small.terms_empty);
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
