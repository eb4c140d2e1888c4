// Backward pass, kernel 1 of 3: the forward recurrence once more, without its outputs. Writes the
// states that each chunk starts with and the chunk's R.
//
// A block owns one sequence, one value head and 64 or 128 value channels, and walks its chunks.
// Each consumer warpgroup keeps S^T and M^T (64 value channels by up to 128 key channels) in fp32
// accumulators. The rounded copies that the next kernel wants are also this kernel's own A operand,
// so the states pass through shared memory once:
//
//     S^T, M^T -> boxes -> global memory and X_S = S^T K^T, X_M = M^T K^T
//     W^T = V^T - X_S diag(e) + X_M diag(c)                  fp32, to fp16 times a power of two
//     R'^T = W^T T'^T                                         fp16 operands
//     S^T = a_C S^T - b_C M^T + (R'^T diag(g rk)) K;   M^T = m M^T - (R'^T diag(n rk)) K
//
// With K = 256 two warpgroups share 64 value channels, each with half of K; the partial X are
// summed through shared memory.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_progress.cuh"

namespace mdn::kernels::cuda::backward_pass {

template <int kK, int kBoxesV, bool kMomentum>
struct StatesShared {
  using S = Split<kK, kBoxesV, kMomentum>;
  static constexpr int kStages = kK == 256 ? 2 : 3;
  static constexpr int kStageBoxes = S::kBoxesK + S::kBoxesV + 1;  // k, v, T
  static constexpr int kStage = 0;
  static constexpr int kStates = kStage + kStages * kStageBoxes * kBox;  // S, M of each warpgroup
  static constexpr int kR = kStates + S::kConsumers * S::kStates * S::kWarpgroupBoxesK * kBox;
  static constexpr int kVectors = kR + S::kBoxesV * kBox;
  static constexpr int kExchange = kVectors + kStages * kVectorBytes;
  static constexpr int kBarriers = kExchange + (S::kHalves == 2 ? 2 * 4096 * 4 : 0);
  static constexpr int kOutgoing = kBarriers + 2 * kStages * 8;  // a warpgroup's each
  static constexpr int kBytes =
      kOutgoing + S::kConsumers * static_cast<int>(sizeof(Outgoing)) + 1024;  // slack to align
};

template <class E, int kK, int kBoxesV, bool kMomentum>
__device__ __forceinline__ void states_producer(const Arguments& args, uint8_t* shared,
                                                uint64_t* full, uint64_t* empty, const Walk& walk,
                                                int head, int tile) {
  using S = Split<kK, kBoxesV, kMomentum>;
  using L = StatesShared<kK, kBoxesV, kMomentum>;
  Ring<L::kStages> ring;
  const int last = walk.last;
  int entry = walk.first;
  if (entry == last) {
    return;
  }
  int token = static_cast<int>(args.chunks[entry].token);  // chunks of a sequence follow each other
  for (; entry < last; ++entry, token += kChunk, ring.next()) {
    const uint8_t* record =
        args.records + (static_cast<int64_t>(entry) * args.HV + head) * kRecordBytes;
    uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
    ptx::mbarrier_wait(&empty[ring.stage], ring.phase ^ 1);
    uint64_t* barrier = &full[ring.stage];
    ptx::mbarrier_arrive_expect(barrier, L::kStageBoxes * kBox + kVectorBytes);
    for (int i = 0; i < S::kBoxesK; ++i) {
      ptx::tma_load(stage + i * kBox, &args.k, barrier, 64 * i, head / args.group, token);
    }
    stage += S::kBoxesK * kBox;
    for (int i = 0; i < S::kBoxesV; ++i) {
      ptx::tma_load(stage + i * kBox, &args.v, barrier, 64 * (tile * S::kBoxesV + i), head, token);
    }
    ptx::bulk_load(stage + S::kBoxesV * kBox, record + kRecordT, kBox, barrier);
    ptx::bulk_load(shared + L::kVectors + ring.stage * kVectorBytes, record + kRecordVectors,
                   kVectorBytes, barrier);
  }
}

template <class E, int kK, int kBoxesV, bool kMomentum>
__device__ __forceinline__ void states_consumer(const Arguments& args, uint8_t* shared,
                                                uint64_t* full, uint64_t* empty, const Walk& walk,
                                                int state, int head, int tile) {
  using Sp = Split<kK, kBoxesV, kMomentum>;
  using L = StatesShared<kK, kBoxesV, kMomentum>;
  constexpr int kRegisters = Sp::kWarpgroupK / 2;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int half = Sp::kHalves == 2 ? warpgroup : 0;
  const int box_v = Sp::kHalves == 2 ? 0 : warpgroup;  // of the block's
  const int barrier_id = 1 + warpgroup;
  const int v_box = tile * Sp::kBoxesV + box_v;  // of the head's

  float S[kRegisters];
  [[maybe_unused]] float M[kRegisters];
  const int64_t state_offset = ((static_cast<int64_t>(state) * args.HV + head) * args.V +
                                64 * v_box + 16 * warp + lane / 4) *
                                   kK +
                               half * Sp::kWarpgroupK + 2 * (lane % 4);
  load_state(S, args.initial_S == nullptr ? nullptr : args.initial_S + state_offset, kK);
  if constexpr (kMomentum) {
    load_state(M, args.initial_M == nullptr ? nullptr : args.initial_M + state_offset, kK);
  }

  uint8_t* states = shared + L::kStates + warpgroup * Sp::kStates * Sp::kWarpgroupBoxesK * kBox;
  const uint32_t S_box = ptx::shared_address(states);
  [[maybe_unused]] const uint32_t M_box = S_box + Sp::kWarpgroupBoxesK * kBox;
  uint8_t* r_tile = shared + L::kR + box_v * kBox;
  const uint32_t r_lane = parts::transposed_lane(ptx::shared_address(r_tile), warp, lane);
  float* exchange = reinterpret_cast<float*>(shared + L::kExchange);

  Ring<L::kStages> ring;
  for (int entry = walk.first; entry < walk.last; ++entry, ring.next()) {
    const uint32_t stage =
        ptx::shared_address(shared + L::kStage + ring.stage * L::kStageBoxes * kBox);
    const uint32_t k_box = stage + half * Sp::kWarpgroupBoxesK * kBox;
    const uint32_t v_tile = stage + (Sp::kBoxesK + box_v) * kBox;
    const uint32_t t_box = stage + (Sp::kBoxesK + Sp::kBoxesV) * kBox;
    const auto* vectors =
        reinterpret_cast<const ChunkVectors*>(shared + L::kVectors + ring.stage * kVectorBytes);
    const int column = 2 * (lane % 4);

    // The states that the chunk starts with, rounded: to shared memory, from there to global.
    store_state_boxes<E, Sp>(S_box, M_box, warp, lane, S, M);
    ptx::fence_async_shared();
    Outgoing& outgoing = outgoing_of(shared + L::kOutgoing);
    ptx::mbarrier_arrive(&outgoing.full);  // and the last chunk's R
    ptx::named_barrier(barrier_id, 128);

    ptx::mbarrier_wait(&full[ring.stage], ring.phase);
    // X_S = S^T K^T, X_M = M^T K^T
    float XS[32];
    float XM[32];  // then R'
    key_products<E, Sp>(XS, XM, S_box, M_box, k_box);
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(XS);
    if constexpr (kMomentum) {
      ptx::wgmma_touch(XM);
    }
    // W^T = V^T - X_S diag(e) + X_M diag(c)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 e = parts::column_pair(vectors->e + column, j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* x = &XS[4 * j + 2 * i];
        if constexpr (kMomentum) {
          const float2 c = parts::column_pair(vectors->c + column, j);
          x[0] = c.x * XM[4 * j + 2 * i] - e.x * x[0];
          x[1] = c.y * XM[4 * j + 2 * i + 1] - e.y * x[1];
        } else {
          x[0] *= -e.x;
          x[1] *= -e.y;
        }
      }
    }
    if constexpr (Sp::kHalves == 2) {
      add_other_half(XS, exchange, half, thread);
    }
    uint32_t a[4][4];
    {
      float v[32];
      parts::load_transposed<E>(v, parts::transposed_lane(v_tile, warp, lane));
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        XS[i] += v[i];
      }
    }
    float w_inverse;
    half_operand(a, XS, w_inverse);
    // R'^T = W^T T'^T, while the states decay in place
    ptx::wgmma_touch(XM);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::wgmma_ra<__half, ptx::Major::kK>(XM, a[i], ptx::descriptor_k(t_box + 32 * i), i > 0);
    }
    ptx::wgmma_commit();
    const float a_end = vectors->a_end;
    [[maybe_unused]] const float b_end = vectors->b_end;
    [[maybe_unused]] const float m_end = vectors->m_end;
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      if constexpr (kMomentum) {
        S[i] = a_end * S[i] - b_end * M[i];
        M[i] *= m_end;
      } else {
        S[i] *= a_end;
      }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(XM);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      XM[i] *= w_inverse;
    }
    // S^T += (R'^T diag(g rk)) K;  M^T -= (R'^T diag(n rk)) K
    [[maybe_unused]] uint32_t write[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int at = 8 * i + 4 * j;
        const float2 rk = parts::column_pair(vectors->rk + column, 2 * i + j);
        const float2 g = parts::column_pair(vectors->g + column, 2 * i + j);
        const float gx = g.x * rk.x;
        const float gy = g.y * rk.y;
        a[i][2 * j] = ptx::pack<E>(XM[at] * gx, XM[at + 1] * gy);
        a[i][2 * j + 1] = ptx::pack<E>(XM[at + 2] * gx, XM[at + 3] * gy);
        if constexpr (kMomentum) {
          const float2 n = parts::column_pair(vectors->n + column, 2 * i + j);
          const float nx = -n.x * rk.x;
          const float ny = -n.y * rk.y;
          write[i][2 * j] = ptx::pack<E>(XM[at] * nx, XM[at + 1] * ny);
          write[i][2 * j + 1] = ptx::pack<E>(XM[at + 2] * nx, XM[at + 3] * ny);
        }
      }
    }
    ptx::wgmma_touch(S);
    if constexpr (kMomentum) {
      ptx::wgmma_touch(M);
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint64_t b = ptx::descriptor_mn(k_box + 2048 * i, kBox);
      ptx::wgmma_ra<E, ptx::Major::kMN>(S, a[i], b);
      if constexpr (kMomentum) {
        ptx::wgmma_ra<E, ptx::Major::kMN>(M, write[i], b);
      }
    }
    ptx::wgmma_commit();
    if constexpr (Sp::kHalves == 1) {
      ptx::named_barrier(barrier_id, 128);  // all warps' products with the boxes are done
    }
    // The last chunk's R has left, and S and M. The wait's parity is the chunk's.
    static_assert(L::kStages == 2 || L::kStages == 3);
    ptx::mbarrier_wait(&outgoing.empty, (ring.stage ^ (L::kStages == 3 ? ring.phase : 0)) & 1);
    if (half == 0) {  // R = r_scale R'
      const float r_scale = vectors->r_scale;
      float r[32];
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        r[i] = r_scale * XM[i];
      }
      parts::store_transposed<E>(r_lane, r);
      ptx::fence_async_shared();
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(S);
    if constexpr (kMomentum) {
      ptx::wgmma_touch(M);
    }
    ptx::mbarrier_arrive(&empty[ring.stage]);
  }
  ptx::mbarrier_arrive(&outgoing_of(shared + L::kOutgoing).full);
}

}  // namespace mdn::kernels::cuda::backward_pass
