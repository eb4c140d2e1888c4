// Backward pass, kernel 3 of 3: what is parallel over chunks. Reads the states that a chunk starts
// with, the gradients of those that it ends with, R and dW; writes dq, dk and the gates' gradients.
// No atomics: a block owns all of a chunk's sums.
//
// A block walks over (chunk, value head) items with three consumer warpgroups and a producer warp.
// It takes the key channels in tiles of 64; for each tile it sums over the value channels:
//
//     warpgroup 0 ("o")   oS = dO S0^T, oM = dO M0^T;   oR = dO R^T (first tile)
//     warpgroup 1 ("w")   wS = dW S0^T, wM = dW M0^T;   F = dW R^T  (first tile)
//     warpgroup 2 ("r")   rS = R dS^T,  rM = R dM^T;    P = Q K^T and K K^T, tile by tile
//
// q and k are the rows as given; 1/|q_t| and 1/|k_t| are factors of the masks and vectors, so that
// all products see the raw rows and the results are the gradients of the raw rows but for the
// derivative of the norms, which is taken off at the end. With rq, rk these factors:
//
//     dP[t,j] = scale rq_t rk_j eta_j oR[t,j] G[t,j]   (j <= t)
//     Z[t,j]  = -rk_t rk_j eta_j F[t,j] H[t,j]         (j < t)
//     dq = a oS - b oM + dP K;   dk = dP^T Q + (Z + Z^T) K - e wS + c wM + eta rk (g rS - n rM)
//
// Last come the masks' gradients and the reverse recurrence over them, a thread a column.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"

namespace mdn::kernels::cuda::backward_pass {

inline constexpr int kGradientThreads = 4 * 128;
inline constexpr int kMaskStride = 65;                // columns 0 (the initial M) .. 64
inline constexpr int kMaskFloats = 65 * kMaskStride;  // rows 0 (the chunk's start) .. 64

struct GradientsShared {
  static constexpr int kStages = 2;
  static constexpr int kStageBoxes = 7;  // S, M, dS, dM, dO, dW, R
  static constexpr int kStage = 0;
  static constexpr int kQK = kStage + kStages * kStageBoxes * kBox;  // q, k of the tile
  static constexpr int kDP = kQK + 2 * kBox;
  static constexpr int kZ = kDP + kBox;
  static constexpr int kVectors = kZ + kBox;
  static constexpr int kSmall = kVectors + kVectorBytes;
};

enum Gate { kAlpha, kMu, kEta, kBeta, kPi };

/// The fp32 part of the block's shared memory. Rows and columns of the masks count from 0, the
/// chunk's start; token t of the chunk (from 0) is row and column t + 1.
struct GradientsSmall {
  float Mu[kMaskFloats];
  float G[kMaskFloats];
  float dG[kMaskFloats];  // before: the exchange of dk's halves; after: products to sum
  float dH[kMaskFloats];
  float gates[5][kChunk];  // in the order of Gate
  float a[kChunk + 1];     // alpha_1 ... alpha_t
  float da[kChunk];        // direct gradient of a_t through the outputs
  float de[kChunk];        // of e_t = pi_t a_{t-1}
  float dMu_end[kChunk + 1];
  float krS[kChunk];  // rk_j k_j . rS_j
  float krM[kChunk];
  float deta[8][kChunk];   // by the warps of warpgroups 0 and 1
  float dalpha_a[kChunk];  // the parts of dalpha and dpi that come through a
  float dpi_a[kChunk];
  float dots[12];  // <dS,S>, <dS,M>, <dM,M> of the warps
  uint64_t full[GradientsShared::kStages];
  uint64_t empty[GradientsShared::kStages];
  uint64_t qk_full, qk_empty, vectors_full, vectors_empty;
};
inline constexpr int kGradientsBytes =
    GradientsShared::kSmall + static_cast<int>(sizeof(GradientsSmall)) + 1024;
static_assert(kGradientsBytes <= 232448, "more shared memory than a block of an H100 can have");

__device__ __forceinline__ void gradients_producer(const Arguments& args, uint8_t* shared,
                                                   GradientsSmall& small) {
  using L = GradientsShared;
  const int tiles = args.K / 64;
  const int steps = args.V / 64;
  Ring<L::kStages> ring;
  Ring<1> qk;
  Ring<1> vectors;
  const int64_t items = args.entries * args.heads;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t entry = item / args.heads;
    const Chunk chunk = args.chunks[entry];
    if (chunk.length == 0) {
      return;
    }
    const int head = args.head + static_cast<int>(item % args.heads);
    const int token = static_cast<int>(chunk.token);
    ptx::mbarrier_wait(&small.vectors_empty, vectors.phase ^ 1);
    ptx::mbarrier_arrive_expect(&small.vectors_full, kVectorBytes);
    ptx::bulk_load(shared + L::kVectors,
                   args.records + (entry * args.HV + head) * kRecordBytes + kRecordVectors,
                   kVectorBytes, &small.vectors_full);
    vectors.next();
    for (int tile = 0; tile < tiles; ++tile) {
      for (int step = 0; step < steps; ++step) {
        uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
        uint64_t* barrier = &small.full[ring.stage];
        ptx::mbarrier_wait(&small.empty[ring.stage], ring.phase ^ 1);
        ptx::mbarrier_arrive_expect(barrier, L::kStageBoxes * kBox);
        const int64_t at = ((item * steps + step) * tiles + tile) * kBox;
        ptx::bulk_load(stage, args.S + at, kBox, barrier);
        ptx::bulk_load(stage + kBox, args.M + at, kBox, barrier);
        ptx::bulk_load(stage + 2 * kBox, args.dS + at, kBox, barrier);
        ptx::bulk_load(stage + 3 * kBox, args.dM + at, kBox, barrier);
        ptx::tma_load(stage + 4 * kBox, &args.d_o, barrier, 64 * step, head, token);
        ptx::tma_load(stage + 5 * kBox, &args.d_v, barrier, 64 * step, head, token);
        ptx::bulk_load(stage + 6 * kBox, args.R + (item * steps + step) * kBox, kBox, barrier);
        ring.next();
      }
      ptx::mbarrier_wait(&small.qk_empty, qk.phase ^ 1);
      ptx::mbarrier_arrive_expect(&small.qk_full, 2 * kBox);
      ptx::tma_load(shared + L::kQK, &args.q, &small.qk_full, 64 * tile, head / args.group, token);
      ptx::tma_load(shared + L::kQK + kBox, &args.k, &small.qk_full, 64 * tile, head / args.group,
                    token);
      qk.next();
    }
  }
}

/// This thread's part of the sum of x y over two boxes of E.
template <class E>
__device__ __forceinline__ float box_dot(const uint8_t* x, const uint8_t* y, int thread) {
  float sum = 0.0F;
#pragma unroll
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

/// The derivative of the norm, on rows that this thread has written: with y the stored gradient
/// (of the raw row at fixed norm) and x the raw row, y -= x r^2 (x . y); `dots` are x . y.
template <class E, class Out>
__device__ __forceinline__ void subtract_norm(Out* out, int64_t row_stride, const E* x,
                                              int64_t x_stride, int tiles, const float (&dots)[2],
                                              const float (&inverse)[2], int row, int length) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (row + 8 * i < length) {
      const float factor = inverse[i] * inverse[i] * dots[i];
      for (int tile = 0; tile < tiles; ++tile) {
        Out* at = out + (row + 8 * i) * row_stride + 64 * tile;
        const E* from = x + (row + 8 * i) * x_stride + 64 * tile;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 raw = ptx::unpack<E>(*reinterpret_cast<const uint32_t*>(from + 8 * j));
          if constexpr (sizeof(Out) == 4) {
            float2 y = *reinterpret_cast<float2*>(at + 8 * j);
            y.x -= factor * raw.x;
            y.y -= factor * raw.y;
            *reinterpret_cast<float2*>(at + 8 * j) = y;
          } else {
            const float2 y = ptx::unpack<Out>(*reinterpret_cast<uint32_t*>(at + 8 * j));
            *reinterpret_cast<uint32_t*>(at + 8 * j) =
                ptx::pack<Out>(y.x - factor * raw.x, y.y - factor * raw.y);
          }
        }
      }
    }
  }
}

/// Mu, G of column j, rows 0 .. 64 (zeros above the diagonal); thread 65: the products a.
///     Mu[t,j] = mu_t Mu[t-1,j];   G[t,j] = alpha_t G[t-1,j] + beta_t Mu[t,j]
/// but H in G's place where pi acts: G[t,j] = H[t,j] + beta_t Mu[t,j] has H = alpha_t G[t-1,j]; the
/// prediction's mask pi_t G[t-1,j] is made where it is needed.
__device__ __forceinline__ void make_masks(GradientsSmall& small, int j) {
  if (j == kChunk + 1) {
    float a = 1.0F;
    small.a[0] = a;
#pragma unroll 8
    for (int t = 1; t <= kChunk; ++t) {
      a *= small.gates[kAlpha][t - 1];
      small.a[t] = a;
    }
  } else if (j <= kChunk) {
    float Mu = j == 0 ? 1.0F : 0.0F;
    float G = 0.0F;
    small.Mu[j] = Mu;
    small.G[j] = G;
#pragma unroll 8
    for (int t = 1; t <= kChunk; ++t) {
      Mu = t == j ? 1.0F : small.gates[kMu][t - 1] * Mu;
      G = small.gates[kAlpha][t - 1] * G + small.gates[kBeta][t - 1] * Mu;
      small.Mu[t * kMaskStride + j] = Mu;
      small.G[t * kMaskStride + j] = G;
    }
  }
}

/// The reverse recurrence of one column, and for thread 65 that of a. Leaves in the place of dG,
/// dH, Mu, G the terms of dalpha, dpi, dbeta, dmu, to be summed over each row.
__device__ __forceinline__ void masks_backward(GradientsSmall& small, int j) {
  if (j == kChunk + 1) {
    float carry = 0.0F;
#pragma unroll 8
    for (int t = kChunk; t >= 1; --t) {
      const float da = carry + small.da[t - 1];
      const float de = small.de[t - 1];
      small.dalpha_a[t - 1] = da * small.a[t - 1];
      small.dpi_a[t - 1] = de * small.a[t - 1];
      carry = small.gates[kAlpha][t - 1] * da + small.gates[kPi][t - 1] * de;
    }
  } else if (j <= kChunk) {
    float carry_G = 0.0F;
    float carry_Mu = small.dMu_end[j];
    float Mu = small.Mu[kChunk * kMaskStride + j];
#pragma unroll 8
    for (int t = kChunk; t >= 1; --t) {
      const int at = t * kMaskStride + j;
      const float G_before = small.G[at - kMaskStride];
      const float Mu_before = small.Mu[at - kMaskStride];
      const float dG = carry_G + small.dG[at];
      const float dMu = carry_Mu + small.gates[kBeta][t - 1] * dG;
      const float dH = small.dH[at];
      small.dG[at] = dG * G_before;
      small.dH[at] = dH * G_before;
      small.Mu[at] = dG * Mu;
      small.G[at] = dMu * Mu_before;
      carry_G = small.gates[kAlpha][t - 1] * dG + small.gates[kPi][t - 1] * dH;
      carry_Mu = small.gates[kMu][t - 1] * dMu;
      Mu = Mu_before;
    }
  }
}

/// One step of 64 value channels: A += a S or a dS, B likewise with M or dM, and with kFirst oR or
/// F.
template <class E, int kRole, bool kFirst>
__device__ __forceinline__ void multiply_states(float (&A)[32], float (&B)[32], float (&X)[32],
                                                uint32_t boxes, int accumulate) {
  const uint32_t a_box = boxes + (4 + kRole) * kBox;
  const uint32_t s_box = boxes + (kRole == 2 ? 2 : 0) * kBox;
  ptx::wgmma_touch(A);
  ptx::wgmma_touch(B);
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint64_t a = ptx::descriptor_k(a_box + 32 * i);
    ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
        A, a, ptx::descriptor_mn(s_box + 2048 * i, kBox), accumulate | (i > 0));
    ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
        B, a, ptx::descriptor_mn(s_box + kBox + 2048 * i, kBox), accumulate | (i > 0));
    if constexpr (kFirst && kRole < 2) {
      ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(
          X, a, ptx::descriptor_k(boxes + 6 * kBox + 32 * i), accumulate | (i > 0));
    }
  }
  ptx::wgmma_commit();
}

template <class E, class Out, int role>
__device__ __forceinline__ void gradients_consumer(const Arguments& args, uint8_t* shared,
                                                   GradientsSmall& small) {
  using L = GradientsShared;
  const int tiles = args.K / 64;
  const int steps = args.V / 64;
  constexpr int kAll = 1;   // barrier of the three warpgroups
  constexpr int kKeys = 2;  // of warpgroups 1 and 2
  const int index = static_cast<int>(threadIdx.x);
  const int thread = index % 128;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int row = 16 * warp + lane / 4;  // and row + 8: this thread's rows of accumulators
  const int column = 2 * (lane % 4);
  const auto* vectors = reinterpret_cast<const ChunkVectors*>(shared + L::kVectors);
  uint8_t* q_tile = shared + L::kQK;
  uint8_t* k_tile = q_tile + kBox;
  const uint32_t q_box = ptx::shared_address(q_tile);
  const uint32_t k_box = q_box + kBox;
  const uint32_t dp_box = ptx::shared_address(shared + L::kDP);
  const uint32_t z_box = dp_box + kBox;
  float* exchange = small.dG;

  Ring<L::kStages> ring;
  uint32_t qk_phase = 0;
  uint32_t vectors_phase = 0;
  const int64_t items = args.entries * args.heads;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t entry = item / args.heads;
    const Chunk chunk = args.chunks[entry];
    const int length = chunk.length;
    if (length == 0) {
      return;
    }
    const int head = args.head + static_cast<int>(item % args.heads);

    // Gates, then masks. Tokens past the end leave everything as it is.
    if (index < 5 * kChunk) {
      const int gate = index / kChunk;
      const int t = index % kChunk;
      const float* from = gate == kAlpha       ? args.alpha
                          : gate == kMu        ? args.mu
                          : gate == kEta       ? args.eta
                          : gate == kBeta      ? args.beta
                          : args.pi != nullptr ? args.pi
                                               : args.alpha;
      const float idle = gate == kEta || gate == kBeta ? 0.0F : 1.0F;
      small.gates[gate][t] = t < length ? from[(chunk.token + t) * args.HV + head] : idle;
    }
    ptx::named_barrier(kAll, 384);
    make_masks(small, index);

    float A[32];   // against S or dS
    float B[32];   // against M or dM
    float X[32];   // oR, F or P
    float KK[32];  // K K^T
    float dots_S[2] = {0.0F, 0.0F};
    float dots_M[2] = {0.0F, 0.0F};
    float norm_dots[2] = {0.0F, 0.0F};
    float state_dot = 0.0F;
    const int64_t qk_stride = int64_t{args.HV / args.group} * args.K;
    const int64_t out_stride = args.partial ? int64_t{args.HV} * args.K : qk_stride;
    const int out_head = args.partial ? head : head / args.group;
    Out* out = static_cast<Out*>(role == 0 ? args.d_q : args.d_k) + chunk.token * out_stride +
               static_cast<int64_t>(out_head) * args.K + column;

    // The sums over the value channels of one tile of key channels.
    const auto sum_values = [&]<bool kFirst>() {
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        const uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
        ptx::mbarrier_wait(&small.full[ring.stage], ring.phase);
        multiply_states<E, role, kFirst>(A, B, X, ptx::shared_address(stage), step > 0);
        // <dS,S>, <dS,M>, <dM,M>, one a warpgroup
        state_dot += box_dot<E>(stage + (role == 2 ? 3 : 2) * kBox,
                                stage + (role == 0 ? 0 : 1) * kBox, thread);
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(A);
        ptx::wgmma_touch(B);
        if constexpr (kFirst && role < 2) {
          ptx::wgmma_touch(X);
        }
        __syncwarp();
        if (lane == 0) {
          ptx::mbarrier_arrive(&small.empty[ring.stage]);
        }
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

      ptx::mbarrier_wait(&small.qk_full, qk_phase);
      qk_phase ^= 1;
      if (role == 2) {  // P += Q K^T, K K^T
        ptx::wgmma_touch(X);
        ptx::wgmma_touch(KK);
        ptx::wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint64_t b = ptx::descriptor_k(k_box + 32 * i);
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(X, ptx::descriptor_k(q_box + 32 * i), b,
                                                           tile > 0 || i > 0);
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(KK, b, b, tile > 0 || i > 0);
        }
        ptx::wgmma_commit();
      }
      const uint8_t* mine = role == 0 ? q_tile : k_tile;
      row_dots<E>(dots_S, A, mine, warp, lane);
      row_dots<E>(dots_M, B, mine, warp, lane);
      if (role == 2) {
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(X);
        ptx::wgmma_touch(KK);
      }

      if (tile == 0) {
        ptx::mbarrier_wait(&small.vectors_full, vectors_phase);
        vectors_phase ^= 1;
        ptx::named_barrier(kAll, 384);  // the masks are there
        if (role < 2) {                 // dP or Z
          float y[32];
          const float* scales = role == 0 ? vectors->rq : vectors->rk;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int t = row + 8 * i;
            const float row_scale = (role == 0 ? args.scale : -small.gates[kPi][t]) * scales[t];
            const float* mask = &small.G[(role == 0 ? t + 1 : t) * kMaskStride + 1];
#pragma unroll
            for (int j = 0; j < 8; ++j) {
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                const int s = 8 * j + column + h;
                const bool in = t < length && (role == 0 ? s <= t : s < t);
                y[4 * j + 2 * i + h] = in ? row_scale * vectors->rk[s] * small.gates[kEta][s] *
                                                X[4 * j + 2 * i + h] * mask[s]
                                          : 0.0F;
              }
            }
          }
          store_box<E>(role == 0 ? dp_box : z_box, warp, lane, y, 0);
          ptx::fence_async_shared();
        }
        ptx::named_barrier(kAll, 384);
      }

      // Rows: dq = a oS - b oM + ..., dk = -e wS + c wM + ... and eta rk (g rS - n rM) + ...
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i;
        float f;
        float h;
        if (role == 0) {
          f = vectors->a[t];
          h = -vectors->b[t];
        } else if (role == 1) {
          f = -vectors->e[t];
          h = vectors->c[t];
        } else {
          const float write = small.gates[kEta][t] * vectors->rk[t];
          f = write * small.G[kChunk * kMaskStride + t + 1];
          h = -write * small.Mu[kChunk * kMaskStride + t + 1];
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int at = 4 * j + 2 * i;
          A[at] = f * A[at] + h * B[at];
          A[at + 1] = f * A[at + 1] + h * B[at + 1];
        }
      }
      ptx::wgmma_touch(A);
      ptx::wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (role == 0) {  // dP K
          ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kMN>(
              A, ptx::descriptor_k(dp_box + 32 * i), ptx::descriptor_mn(k_box + 2048 * i, kBox));
        } else if (role == 1) {  // (Z + Z^T) K
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
      if (role == 1) {
#pragma unroll
        for (int i = 0; i < 32; ++i) {
          exchange[i * 128 + thread] = A[i];
        }
        ptx::named_barrier(kKeys, 256);
        ptx::named_barrier(kKeys, 256);
      } else {
        if (role == 2) {
          ptx::named_barrier(kKeys, 256);
#pragma unroll
          for (int i = 0; i < 32; ++i) {
            A[i] += exchange[i * 128 + thread];
          }
          ptx::named_barrier(kKeys, 256);
        }
        if (args.l2norm) {
          row_dots<E>(norm_dots, A, mine, warp, lane);
        }
        store_rows<Out>(out + 64 * tile, out_stride, A, row, length);
      }
      __syncwarp();
      if (lane == 0) {
        ptx::mbarrier_arrive(&small.qk_empty);
      }
    }

    // Row dot products of all of K: into the direct gradients of vectors and masks.
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      dots_S[i] = quad_sum(dots_S[i]);
      dots_M[i] = quad_sum(dots_M[i]);
      norm_dots[i] = quad_sum(norm_dots[i]);
      if (lane % 4 == 0) {
        const bool in = t < length;
        if (role == 0) {
          const float f = args.scale * vectors->rq[t];
          small.da[t] = in ? f * dots_S[i] : 0.0F;
          dots_M[i] = in ? -f * dots_M[i] : 0.0F;  // db
        } else if (role == 1) {
          const float f = vectors->rk[t];
          small.de[t] = in ? -f * dots_S[i] : 0.0F;
          dots_M[i] = in ? f * dots_M[i] : 0.0F;  // dc
        } else {
          const float f = vectors->rk[t];
          small.krS[t] = in ? f * dots_S[i] : 0.0F;
          small.krM[t] = in ? f * dots_M[i] : 0.0F;
        }
      }
    }
    if (args.l2norm && role != 1) {
      const float* scales = role == 0 ? vectors->rq : vectors->rk;
      const float inverse[2] = {scales[row], scales[row + 8]};
      const E* raw = static_cast<const E*>(role == 0 ? args.q_rows : args.k_rows) +
                     chunk.token * qk_stride + static_cast<int64_t>(head / args.group) * args.K +
                     column;
      subtract_norm<E, Out>(out, out_stride, raw, qk_stride, tiles, norm_dots, inverse, row,
                            length);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      state_dot += __shfl_xor_sync(0xFFFFFFFFU, state_dot, offset);
    }
    if (lane == 0) {
      small.dots[4 * role + warp] = state_dot;
    }
    ptx::named_barrier(kAll, 384);  // the last exchange has been read

    // P and K K^T to the places of dG and dH, then dG = Y o P and dH = E o K K^T there.
    if (role == 2) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int at = (row + 8 * i + 1) * kMaskStride + 8 * j + column + h + 1;
            small.dG[at] = X[4 * j + 2 * i + h];
            small.dH[at] = KK[4 * j + 2 * i + h];
          }
        }
      }
    }
    ptx::named_barrier(kAll, 384);
    if (role < 2) {
      float* into = role == 0 ? small.dG : small.dH;
      float sums[16];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sums[i] = 0.0F;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i;
        const float row_scale = role == 0 ? args.scale * vectors->rq[t] : -vectors->rk[t];
        const float mask_scale = role == 0 ? 1.0F : small.gates[kPi][t];
        const float* mask = &small.G[(role == 0 ? t + 1 : t) * kMaskStride + 1];
        const bool last = role == 0 && t == kChunk - 1;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int s = 8 * j + column + h;
            const int at = (t + 1) * kMaskStride + s + 1;
            const bool in = t < length && (role == 0 ? s <= t : s < t);
            const float y =
                in ? row_scale * vectors->rk[s] * X[4 * j + 2 * i + h] * into[at] : 0.0F;
            sums[2 * j + h] += y * mask_scale * mask[s];
            // dG[C,j] += eta_j rk_j k_j . rS_j
            into[at] = small.gates[kEta][s] * (last ? y + small.krS[s] : y);
          }
        }
        if (lane % 4 == 0) {  // column 0: the initial M
          into[(t + 1) * kMaskStride] =
              last ? dots_M[i] - (small.dots[4] + small.dots[5] + small.dots[6] + small.dots[7])
                   : dots_M[i];
        }
      }
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        float x = sums[i];
        x += __shfl_xor_sync(0xFFFFFFFFU, x, 4);
        x += __shfl_xor_sync(0xFFFFFFFFU, x, 8);
        x += __shfl_xor_sync(0xFFFFFFFFU, x, 16);
        if (lane < 4) {
          small.deta[4 * role + warp][8 * (i / 2) + column + i % 2] = x;
        }
      }
    } else {
      if (thread < kChunk) {
        small.dMu_end[thread + 1] = -small.gates[kEta][thread] * small.krM[thread];
      } else if (thread == kChunk) {
        small.dMu_end[0] = small.dots[8] + small.dots[9] + small.dots[10] + small.dots[11];
        small.da[kChunk - 1] += small.dots[0] + small.dots[1] + small.dots[2] + small.dots[3];
      }
    }
    ptx::named_barrier(kAll, 384);
    if (index < kChunk && index < length) {
      float x = small.G[kChunk * kMaskStride + index + 1] * small.krS[index] -
                small.Mu[kChunk * kMaskStride + index + 1] * small.krM[index];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x += small.deta[i][index];
      }
      args.d_eta[(chunk.token + index) * args.HV + head] = x;
    }
    __syncwarp();
    ptx::named_barrier(kAll, 384);  // the masks' end rows have been read
    masks_backward(small, index);
    if (index == 0) {
      ptx::mbarrier_arrive(&small.vectors_empty);
    }
    ptx::named_barrier(kAll, 384);
    // Sums over the columns: a thread a row and gate.
    if (index < 4 * kChunk) {
      const int gate = index / kChunk;
      const int t = index % kChunk;
      const float* terms = gate == 0   ? small.dG
                           : gate == 1 ? small.Mu
                           : gate == 2 ? small.G
                                       : small.dH;
      float sum = 0.0F;
#pragma unroll 13
      for (int j = 0; j <= kChunk; ++j) {
        sum += terms[(t + 1) * kMaskStride + j];
      }
      sum += gate == 0 ? small.dalpha_a[t] : gate == 3 ? small.dpi_a[t] : 0.0F;
      if (gate == 3) {
        small.dpi_a[t] = sum;
      }
      ptx::named_barrier(3, 256);
      if (gate == 0 && args.d_pi == nullptr) {  // pi is alpha
        sum += small.dpi_a[t];
      }
      float* to = gate == 0   ? args.d_alpha
                  : gate == 1 ? args.d_beta
                  : gate == 2 ? args.d_mu
                              : args.d_pi;
      if (t < length && to != nullptr) {
        to[(chunk.token + t) * args.HV + head] = sum;
      }
    }
    ptx::named_barrier(kAll, 384);  // shared memory is free for the next item
  }
}

template <class E, class Out>
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradients_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ uint8_t memory[];
  uint8_t* shared = memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
  auto& small = *reinterpret_cast<GradientsSmall*>(shared + GradientsShared::kSmall);
  if (threadIdx.x == 0) {
    for (int i = 0; i < GradientsShared::kStages; ++i) {
      ptx::mbarrier_init(&small.full[i], 1);
      ptx::mbarrier_init(&small.empty[i], 12);
    }
    ptx::mbarrier_init(&small.qk_full, 1);
    ptx::mbarrier_init(&small.qk_empty, 12);
    ptx::mbarrier_init(&small.vectors_full, 1);
    ptx::mbarrier_init(&small.vectors_empty, 1);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == 3) {
    ptx::registers_decrease<24>();
    if (threadIdx.x == 384) {
      gradients_producer(args, shared, small);
    }
  } else {
    ptx::registers_increase<160>();
    if (warpgroup == 0) {
      gradients_consumer<E, Out, 0>(args, shared, small);
    } else if (warpgroup == 1) {
      gradients_consumer<E, Out, 1>(args, shared, small);
    } else {
      gradients_consumer<E, Out, 2>(args, shared, small);
    }
  }
}

/// d[token, head, :] = E(sum over the group's value heads of the partial sums), in a fixed order.
template <class E>
__global__ void __launch_bounds__(256)
    sum_heads_kernel(const float* __restrict__ partial, E* __restrict__ d, int64_t elements, int K,
                     int group) {
  const int64_t at = (int64_t{blockIdx.x} * 256 + threadIdx.x) * 2;  // in d
  if (at >= elements) {
    return;
  }
  const int64_t row = at / K;
  const int64_t channel = at % K;
  float2 sum{0.0F, 0.0F};
  for (int i = 0; i < group; ++i) {
    const float2 x = *reinterpret_cast<const float2*>(partial + (row * group + i) * K + channel);
    sum.x += x.x;
    sum.y += x.y;
  }
  *reinterpret_cast<uint32_t*>(d + at) = ptx::pack<E>(sum.x, sum.y);
}

}  // namespace mdn::kernels::cuda::backward_pass
