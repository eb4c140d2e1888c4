// A consumer warpgroup of the gradients kernel (hopper_gradients.cuh): products, sums of rows, and
// the rows of dq and dk.
#pragma once

#include <type_traits>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_gradients_shared.cuh"
#include "mdn/kernels/cuda/ptx/mma.cuh"
#include "mdn/kernels/cuda/ptx/thread.cuh"

namespace mdn::kernels::cuda::backward_pass {

/// sums += x y over two boxes of E. Tensor cores sum over quads of lanes: lanes 4 i .. 4 i + 3 hold
/// row i of x and column i of y, whatever elements these are, and row i of the sums' diagonal.
template <class E>
__device__ __forceinline__ void box_dot(float (&sums)[4], const uint8_t* x, const uint8_t* y,
                                        int thread) {
#pragma unroll 2  // registers are scarce here
  for (int i = 0; i < 4; ++i) {
    const uint4 u = *reinterpret_cast<const uint4*>(x + (i * 128 + thread) * 16);
    const uint4 w = *reinterpret_cast<const uint4*>(y + (i * 128 + thread) * 16);
    ptx::mma<E>(sums, {u.x, 0, u.y, 0}, w.x, w.y);
    ptx::mma<E>(sums, {u.z, 0, u.w, 0}, w.z, w.w);
  }
}

/// This lane's part of the sums' diagonal.
__device__ __forceinline__ float diagonal_of(const float (&sums)[4], int lane) {
  const int column = 2 * (lane % 4);
  return lane / 4 == column ? sums[0] : lane / 4 == column + 1 ? sums[1] : 0.0F;
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

/// d += factors[row] times the box's row, for accumulators and a box with the same rows. The box is
/// read anew whatever has been read of it before: there are no registers to keep it in.
template <class E>
__device__ __forceinline__ void add_rows(float (&d)[32], const float (&factors)[2], uint32_t box) {
  const int thread = ptx::fresh_thread_index() % 128;
  const int lane = thread % 32;
  const uint32_t row = box + (16 * (thread / 32) + lane / 4) * 128 + lane % 4 * 4;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t word;
      asm volatile("ld.shared.b32 %0, [%1];"
                   : "=r"(word)
                   : "r"(row + i * 1024 + ((j ^ (lane / 4)) * 16))
                   : "memory");
      const float2 x = ptx::unpack<E>(word);
      d[4 * j + 2 * i] += factors[i] * x.x;
      d[4 * j + 2 * i + 1] += factors[i] * x.y;
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

/// Where an item's rows of dq or dk are: a value head's own, also where they are partial sums.
template <class Out>
struct GradientRows {
  int64_t stride;
  Out* out;
  __device__ __forceinline__ GradientRows(const Arguments& args, const GradientsItem& item,
                                          void* d) {
    stride = static_cast<int64_t>(args.HV) * args.K;
    out = static_cast<Out*>(d) + item.token * stride + static_cast<int64_t>(item.head) * args.K;
  }
};

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
  for (;;) {
    GradientsItem& item = small.items[buffers.stage];
    const auto* vectors =
        reinterpret_cast<const ChunkVectors*>(shared + L::kVectors + buffers.stage * kVectorBytes);
    ptx::mbarrier_wait(&small.item_full[buffers.stage], buffers.phase);
    const int length = item.length;
    if (length == 0) {
      return;
    }

    // Of row t of dP or Z: what does not depend on the mask, 0 past the chunk's end; what the mask
    // G is multiplied with (H[t] = pi_t G[t-1]); the row of G, from the initial M's column on.
    const auto row_factor = [&](int t) {
      return t >= length ? 0.0F : role == 0 ? args.scale * vectors->rq[t] : -vectors->rk[t];
    };
    const auto mask_factor = [&](int t) { return role == 0 ? 1.0F : item.gates[kPi][t]; };
    const auto mask_row = [&](int t) { return &item.masks.lower(role == 0 ? t + 1 : t, 1); };
    float A[32];   // against S or dS
    float B[32];   // against M or dM; nothing without momentum
    float X[32];   // oR or F
    float PK[32];  // P or K K^T
    float dots_S[2] = {0.0F, 0.0F};
    float dots_M[2] = {0.0F, 0.0F};
    float state_dots[4] = {0.0F, 0.0F, 0.0F, 0.0F};

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
          box_dot<E>(state_dots, stage + (role == 2 ? L::kBoxDM : L::kBoxDS) * kBox,
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
        if constexpr (role ==
                      1) {  // rows past the chunk's end: dW of others, perhaps not yet written
          if (length < kChunk) {
#pragma unroll
            for (int at = 0; at < 32; ++at) {
              X[at] = row + at % 4 / 2 * 8 < length ? X[at] : 0.0F;
            }
          }
        }
        ptx::mbarrier_wait(&small.vectors_full[buffers.stage], buffers.phase);
        ptx::named_barrier(kAll, kConsumerThreads);  // the last item's dP and Z have been read
        if constexpr (role < 2) {                    // dP or Z
          const uint32_t row_address = (role == 0 ? dp_box : z_box) + (16 * warp + lane % 16) * 128;
          float row_scale[2];
          const float* mask[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int t = row + 8 * i;
            row_scale[i] = row_factor(t) * mask_factor(t);
            mask[i] = mask_row(t);
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
        if constexpr (std::is_same_v<Out, E>) {
          if (args.l2norm) {  // dx = y - x (x . y) / |x|^2, all of a row known with its last tile
            float dots[2] = {0.0F, 0.0F};
            const int again = ptx::fresh_thread_index() % 128;  // addresses anew, too
            row_dots<E>(dots, A, mine, again / 32, again % 32);
            float factors[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int t = row + 8 * i;
              float dot = quad_sum(dots[i]);
              if (lane % 4 == 0) {  // one lane keeps it, and tells the others
                float& sum = small.row_dots[role / 2][t];
                dot += tile == 0 ? 0.0F : sum;
                sum = dot;
              }
              dot = __shfl_sync(0xFFFFFFFFU, dot, lane / 4 * 4);
              const float r = (role == 0 ? vectors->rq : vectors->rk)[t];
              factors[i] = -dot * r * r;
            }
            if (tile == tiles - 1) {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                if (lane % 4 == 0) {
                  norm_factors(args, item.index)[role / 2 * kChunk + row + 8 * i] = factors[i];
                }
              }
              add_rows<E>(A, factors, role == 0 ? q_box : k_box);
            }
          }
        }
        store_rows<Out>(rows.out + column + 64 * tile, rows.stride, A, row, length);
      }
      ptx::mbarrier_arrive(&small.qk_empty);
    }

    const int thread = ptx::fresh_thread_index() % 128;
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int row = 16 * warp + lane / 4;  // and row + 8: this thread's rows of accumulators
    const int column = 2 * (lane % 4);
    float state_dot = diagonal_of(state_dots, lane);
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
        row_scale[i] = row_factor(t);
        mask_scale[i] = mask_factor(t);
        mask[i] = mask_row(t);
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

}  // namespace mdn::kernels::cuda::backward_pass
