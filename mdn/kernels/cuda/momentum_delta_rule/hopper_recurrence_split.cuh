// Recurrence for K = 256: as hopper_recurrence.cuh, but the states of 64 value channels fill two
// warpgroups, each with half of the key channels, and leave no registers for a third that would
// make the output. Each makes its part of everything; partial sums of W and O are exchanged in
// shared memory. Loader and converters are as there, but the fp16 keys are plain (there is no room
// for two scaled copies): the updates scale R' instead. Per chunk and half:
//
//     X:  XS^T = S^T K^T, XM^T = M^T K^T              state rounded to the inputs' type
//         W^T = V^T - e XS^T + c XM^T                 fp32, summed over the halves, to fp16 in
//                                                     the warp's unit
//     R:  R'^T = W^T T^T                              to fp16, both halves the same
//     Q:  O^T = a (S^T Q^T) - b (M^T Q^T) + R'^T PGD^T           32 tokens a half, after the sum
//     U:  S^T = a_C S^T - b_C M^T + (g R')^T K,  M^T = m M^T - (n R')^T K        fp16 keys
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence_parts.cuh"

namespace mdn::kernels::cuda::hopper {

template <class Element, bool kHasMomentum>
struct SplitTraits {
  using T = Element;
  static constexpr bool kMomentum = kHasMomentum;
  static constexpr int K = 256;
  static constexpr int kTiles = 1;
  static constexpr int kStages = 2;
  static constexpr int kLateStages = 1;
  static constexpr int kWidth = 128;  // key channels of a warpgroup
  static constexpr int kBoxes = K / 64;
  static constexpr int kSlices = kWidth / 16;
  static constexpr int kThreads = 3 * 128;
};

template <class R>
struct SplitShared : RecurrenceStages<R> {
  alignas(1024) char turn[ptx::kBoxBytes];    // O: a half's tokens, a warp's channels
  alignas(1024) float4 exchange[2][8 * 128];  // a half's region: its partial W, then O
  Unit units[2][4];                           // of a half's warps, the same in both halves
  float largest[2][4];                        // state, fp16 inputs only
};

// Named barriers: W exchanged; then for each half: its region read by the other half (W), written
// again (O), read again.
inline constexpr int kBarrierW = 1;
inline constexpr int kBarrierReadW = 2;
inline constexpr int kBarrierWrittenO = 4;
inline constexpr int kBarrierReadO = 6;
inline constexpr int kBarrierStates = 9;  // fp16 inputs: largest states exchanged

/// One of the two halves.
template <class R>
__device__ __forceinline__ void walk_half(SplitShared<R>& shared, const RecurrenceParams& params,
                                          int half, int thread) {
  using T = typename R::T;
  using ptx::Major;
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int column = 2 * (lane % 4);
  const uint32_t lane_offset = parts::transposed_lane(0, warp, lane);
  float S[R::kWidth / 2];
  [[maybe_unused]] float M[R::kWidth / 2];
  const int key = half * R::kWidth + column;
  Unit& unit = shared.units[half][warp];
  const int chunks = shared.chunks();
  // Slice of 16 key channels of this half of a K-major operand [64 tokens, K].
  const auto slice_of = [half](const char(&boxes)[R::kBoxes][ptx::kBoxBytes], int slice) {
    return ptx::descriptor_k(ptx::shared_address(boxes[half * (R::kWidth / 64) + slice / 4]) +
                             static_cast<uint32_t>(slice % 4 * 32));
  };

  for (int part = 0; part < shared.parts; ++part) {
    const RecurrenceWork& work = shared.works[part];
    begin_part<R>(S, M, params, work, 16 * warp + lane / 4, key, 4 * half + warp);
    begin_unit(unit);
    const int to = work.to;
    for (int i = work.from; i < to; ++i) {
      const int stage = i % 2;
      const ChunkVectors& vectors = shared.vectors(stage);
      const bool k_ready = shared.k_ring.try_full(i);  // asked together: one latency
      const bool record_ready = shared.record_ring.try_full(i);
      const bool v_ready = shared.v_ring.try_full(i);

      if constexpr (std::is_same_v<T, __half>) {
        float largest = largest_state<R>(S, M);
        if (ptx::elect_one()) {
          shared.largest[half][warp] = largest;
        }
        ptx::named_barrier(kBarrierStates, 256);
        largest = fmaxf(shared.largest[0][warp], shared.largest[1][warp]);
        fit_unit_to_states<R>(unit, largest, S, M);
      }

      // X: XS^T = S^T K^T, XM^T = M^T K^T.
      float XS[32];
      [[maybe_unused]] float XM[32];
      shared.k_ring.wait_full(i, k_ready);
      const auto& keys = shared.k[stage];
#pragma unroll
      for (int slice = 0; slice < R::kSlices; ++slice) {
        uint32_t a[4];
        [[maybe_unused]] uint32_t b[4];
        if (slice > 0) {  // nothing is in flight before
          ptx::wgmma_wait<1>();
        }
        parts::fragment<T>(a, S, slice);
        if constexpr (R::kMomentum) {
          parts::fragment<T>(b, M, slice);
        }
        ptx::wgmma_fence();
        ptx::wgmma_ra<T, Major::kK>(XS, a, slice_of(keys, slice), slice != 0);
        if constexpr (R::kMomentum) {
          ptx::wgmma_ra<T, Major::kK>(XM, b, slice_of(keys, slice), slice != 0);
        }
        ptx::wgmma_commit();
      }
      shared.record_ring.wait_full(i, record_ready);
      shared.v_ring.wait_full(i, v_ready);
      ptx::wgmma_wait<0>();
      ptx::wgmma_touch(XS);
      if constexpr (R::kMomentum) {
        ptx::wgmma_touch(XM);
      }
      shared.k_ring.release(i);

      // W^T = V^T - e XS^T + c XM^T; V enters with half 0.
      const uint32_t v_address = ptx::shared_address(shared.v[stage]) + lane_offset;
      const float per_unit = unit.inverse;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t v[4] = {0, 0, 0, 0};
        if (half == 0) {
          ptx::ldmatrix_trans(v, v_address + j * 2048);
        }
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const int at = 8 * j + 2 * word;
          const float2 e = parts::column_pair(vectors.e + column, 2 * j + word / 2);
          const float2 pair = ptx::unpack<T>(v[word]);
          XS[at] = fmaf(-e.x, XS[at], per_unit * pair.x);
          XS[at + 1] = fmaf(-e.y, XS[at + 1], per_unit * pair.y);
          if constexpr (R::kMomentum) {
            const float2 c = parts::column_pair(vectors.c + column, 2 * j + word / 2);
            XS[at] = fmaf(c.x, XM[at], XS[at]);
            XS[at + 1] = fmaf(c.y, XM[at + 1], XS[at + 1]);
          }
        }
      }
      if (i > 0) {
        ptx::named_barrier(kBarrierReadO + half, 256);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        shared.exchange[half][j * 128 + thread] = {XS[4 * j], XS[4 * j + 1], XS[4 * j + 2],
                                                   XS[4 * j + 3]};
      }
      ptx::named_barrier(kBarrierW, 256);
      uint32_t W[4][4];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 other = shared.exchange[1 - half][j * 128 + thread];
        XS[4 * j] += other.x;
        XS[4 * j + 1] += other.y;
        XS[4 * j + 2] += other.z;
        XS[4 * j + 3] += other.w;
      }
      // Both halves hold the same sums, and so come to the same unit.
      fit_unit_to_W<R>(unit, XS, vectors.w_limit, S, M);
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        parts::fragment<__half>(W[slice], XS, slice);
      }
      ptx::named_barrier_arrive(kBarrierReadW + 1 - half, 256);

      // R: R'^T = W^T T^T, parked in the box of v: every warp of a half in the part that the same
      // warp of half 0 alone read, both halves the same values.
      float Rt[32];
      matrix_products<false>(Rt, W, ptx::shared_address(shared.record[stage] + kRecordT));
      ptx::wgmma_wait<0>();
      ptx::wgmma_touch(Rt);
      parts::store_transposed<__half>(v_address, Rt);
      __syncwarp();

      // Q: S^T Q^T, then M^T Q^T.
      float OS[32];
      [[maybe_unused]] float OM[32];
      shared.q_ring.wait_full(i);
      const auto& queries = shared.q[0];
#pragma unroll
      for (int slice = 0; slice < R::kSlices; ++slice) {
        uint32_t a[4];
        ptx::wgmma_wait<1>();
        parts::fragment_again<T>(a, S, slice);
        ptx::wgmma_fence();
        ptx::wgmma_ra<T, Major::kK>(OS, a, slice_of(queries, slice), slice != 0);
        ptx::wgmma_commit();
      }
#pragma unroll
      for (int slice = 0; R::kMomentum && slice < R::kSlices; ++slice) {
        uint32_t a[4];
        ptx::wgmma_wait<1>();
        parts::fragment_again<T>(a, M, slice);
        ptx::wgmma_fence();
        ptx::wgmma_ra<T, Major::kK>(OM, a, slice_of(queries, slice), slice != 0);
        ptx::wgmma_commit();
      }

      // a_C S - b_C M and m M, in place: the products in flight hold rounded copies.
      decay_states<R>(S, M, vectors);
      const Chunk chunk = params.chunks[work.begin + i];
      ptx::wgmma_wait<0>();
      ptx::wgmma_touch(OS);
      if constexpr (R::kMomentum) {
        ptx::wgmma_touch(OM);
      }
      shared.q_ring.release(i);

      // O^T = a (S^T Q^T) - b (M^T Q^T), a half keeping 32 tokens and giving the others away.
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 a = parts::column_pair(vectors.a + column, j);
#pragma unroll
        for (int at = 4 * j; at < 4 * j + 4; at += 2) {
          OS[at] *= a.x;
          OS[at + 1] *= a.y;
          if constexpr (R::kMomentum) {
            const float2 b = parts::column_pair(vectors.b + column, j);
            OS[at] = fmaf(-b.x, OM[at], OS[at]);
            OS[at + 1] = fmaf(-b.y, OM[at + 1], OS[at + 1]);
          }
        }
      }
      uint32_t R16[4][4];
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        ptx::ldmatrix_trans(R16[slice], v_address + slice * 2048);
      }
      ptx::fence_async_shared();  // the copy engine writes over what was parked
      shared.v_ring.release(i);
      float own[16];
      ptx::named_barrier(kBarrierReadW + half, 256);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float other[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          own[4 * j + x] = half == 0 ? OS[4 * j + x] : OS[16 + 4 * j + x];
          other[x] = half == 0 ? OS[16 + 4 * j + x] : OS[4 * j + x];
        }
        shared.exchange[half][j * 128 + thread] = {other[0], other[1], other[2], other[3]};
      }
      ptx::named_barrier_arrive(kBarrierWrittenO + half, 256);

      // U: the output's last product, then the updates.
      const uint32_t PGD =
          ptx::shared_address(shared.record[stage] + kRecordPGD) + half * (32 * 128);
      matrix_products<true>(own, R16, PGD);
      shared.keys16_ring.wait_full(i);
      const uint32_t keys16 = ptx::shared_address(shared.keys16[0][half * (R::kWidth / 64)]);
      write_states<R>(S, M, R16, vectors, column, keys16);

      // The output, under the updates.
      ptx::wgmma_wait<R::kMomentum ? 2 : 1>();
      ptx::wgmma_touch(own);
      ptx::named_barrier(kBarrierWrittenO + 1 - half, 256);
      float sum[16];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 other = shared.exchange[1 - half][j * 128 + thread];
        sum[4 * j] = own[4 * j] + other.x;
        sum[4 * j + 1] = own[4 * j + 1] + other.y;
        sum[4 * j + 2] = own[4 * j + 2] + other.z;
        sum[4 * j + 3] = own[4 * j + 3] + other.w;
      }
      if (i + 1 < chunks) {
        ptx::named_barrier_arrive(kBarrierReadO + 1 - half, 256);
      }
      uint4 words[2];
      turn_output<T, 32>(words, shared.turn + half * 4096, sum, unit.value, warp, lane);
      write_output<T, 32>(params, work, chunk, words, work.value, warp, lane, 32 * half);
      ptx::wgmma_wait<0>();
      touch_states<R>(S, M);
      shared.keys16_ring.release(i);
      shared.record_ring.release(i);
    }
    end_part<R>(S, M, params, work, 16 * warp + lane / 4, key, 4 * half + warp, unit.value);
  }
}

template <class R>
__global__ void __launch_bounds__(R::kThreads, 1)
    recurrence_split(const __grid_constant__ CUtensorMap q_map,
                     const __grid_constant__ CUtensorMap k_map,
                     const __grid_constant__ CUtensorMap v_map,
                     const __grid_constant__ RecurrenceParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<SplitShared<R>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  const int warpgroup = __shfl_sync(0xFFFFFFFF, thread / 128, 0);
  if (thread == 0) {
    shared.init(params);
  }
  __syncthreads();
  if (warpgroup == 2) {
    ptx::registers_decrease<24>();
    serve<R>(shared, q_map, k_map, v_map, params, thread - 256);
  } else {
    ptx::registers_increase<240>();
    walk_half<R>(shared, params, warpgroup, thread % 128);
  }
}

}  // namespace mdn::kernels::cuda::hopper
