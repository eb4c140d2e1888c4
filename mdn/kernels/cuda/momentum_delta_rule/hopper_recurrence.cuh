// Recurrence for K <= 128: the walk over the chunks of a sequence, one block for every (sequence,
// value head, one or two tiles of 64 channels of V). Roles:
//
//     consumers  a warpgroup a tile; S^T and M^T of 64 value by K key channels stay in its fp32
//                accumulators for the whole sequence and are fed back, rounded slice by slice, as
//                the register A operand
//     loader     one thread; the copy engine
//     converter  three warps; the keys in fp16 that the updates multiply
//
// Per chunk (transposed, so that every product has 64 rows; R' of hopper_saved.h):
//
//     X:  XS^T = S^T K^T, XM^T = M^T K^T              state rounded to the inputs' type
//         W^T = V^T - e XS^T + c XM^T                 fp32, to fp16 in the warp's unit
//     R:  R'^T = W^T T^T                              to fp16
//     Q:  O^T = a (S^T Q^T) - b (M^T Q^T) + R'^T PGD^T
//     U:  S^T = a_C S^T - b_C M^T + (g R')^T K,  M^T = m M^T - (n R')^T K        fp16 keys
//
// Without momentum (R::kMomentum false) there is no M, and nothing that comes of it.
//
// Nothing wider than a warp synchronises consumers, but what wgmma itself does. The assembler's
// rules shape the order: between the first product of a stage and the wait that empties it,
// ordinary code may not write accumulators that the stage uses, and nothing is in flight across the
// loop. K = 256: hopper_recurrence_split.cuh.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence_parts.cuh"

namespace mdn::kernels::cuda::hopper {

template <class Element, int kKeyChannels, int kValueTiles, bool kHasMomentum>
struct RecurrenceTraits {
  using T = Element;
  static constexpr int K = kKeyChannels;
  static constexpr int kTiles = kValueTiles;
  static constexpr bool kMomentum = kHasMomentum;
  static constexpr int kBoxes = K / 64;
  static constexpr int kPairs = K / 32;  // of slices of 16 key channels
  static constexpr int kStages = 2;
  static constexpr int kLateStages = 2;
  static constexpr int kThreads = 128 * (kTiles + 1);
  // A consumer has 255 registers alone in its block, 240 beside another; kWide is what fits the
  // former only: V - e XS begins under XM, O under OM, and groups of Q of two slices instead of
  // one. Without momentum there is nothing to begin under, and there are registers enough.
  static constexpr bool kWide = kMomentum && kTiles == 1;
  static constexpr int kGroupQ = kWide || !kMomentum ? 2 : 1;
  static_assert(K == 64 || K == 128);
  static_assert(kTiles == 1 || kTiles == 2);
};

template <class R>
struct RecurrenceShared : RecurrenceStages<R> {
  alignas(1024) char turn[R::kTiles][ptx::kBoxBytes];  // R' parked, then O: a warp's part of a box
  Unit units[R::kTiles][4];                            // a warp's
};

/// out (+)= kCount slices of 16 key channels, from `slice` on, of X^T times the tokens of `boxes`:
/// one group. kAgain: see ptx::pack_again.
template <class T, bool kAgain, int kCount, int kRegisters>
__device__ __forceinline__ void state_products(float (&out)[32], const float (&X)[kRegisters],
                                               const char (*boxes)[ptx::kBoxBytes], int slice) {
  uint32_t a[kCount][4];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (kAgain) {
      parts::fragment_again<T>(a[i], X, slice + i);
    } else {
      parts::fragment<T>(a[i], X, slice + i);
    }
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const int at = slice + i;
    ptx::wgmma_ra<T, ptx::Major::kK>(
        out, a[i], ptx::descriptor_k(ptx::shared_address(boxes[at / 4]) + at % 4 * 32), at != 0);
  }
  ptx::wgmma_commit();
}

/// out = column factors times x, for columns 16 j .. 16 j + 15.
__device__ __forceinline__ void scale_columns(float (&out)[32], const float (&x)[32],
                                              const float* vector, int j) {
#pragma unroll
  for (int word = 0; word < 4; ++word) {
    const float2 factor = parts::column_pair(vector, 2 * j + word / 2);
    out[8 * j + 2 * word] = factor.x * x[8 * j + 2 * word];
    out[8 * j + 2 * word + 1] = factor.y * x[8 * j + 2 * word + 1];
  }
}

/// One consumer warpgroup.
template <class R>
__device__ __forceinline__ void walk_tile(RecurrenceShared<R>& shared,
                                          const RecurrenceParams& params, int tile, int thread) {
  using T = typename R::T;
  using ptx::Major;
  constexpr int kPairs = R::kPairs;
  // Which of the two conversions of the states is the longer one (ptx::pack_again).
  constexpr bool kHalfFirst = std::is_same_v<T, __half>;
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int column = 2 * (lane % 4);
  const uint32_t lane_offset = parts::transposed_lane(0, warp, lane);
  const uint32_t park = ptx::shared_address(shared.turn[tile]) + lane_offset;
  float S[R::K / 2];
  [[maybe_unused]] float M[R::K / 2];
  Unit& unit = shared.units[tile][warp];
  for (int part = 0; part < shared.parts; ++part) {
    const RecurrenceWork& work = shared.works[part];
    begin_part<R>(S, M, params, work, 64 * tile + 16 * warp + lane / 4, column, 4 * tile + warp);
    begin_unit(unit);
    const int to = work.to;  // read in the loop, it would cost the assembler spills
    for (int i = work.from; i < to; ++i) {
      const int stage = i % R::kStages;
      const ChunkVectors& vectors = shared.vectors(stage);
      const bool k_ready = shared.k_ring.try_full(i);  // asked together: one latency
      const bool record_ready = shared.record_ring.try_full(i);
      const bool v_ready = shared.v_ring.try_full(i);
      const bool q_ready = shared.q_ring.try_full(i);

      if constexpr (std::is_same_v<T, __half>) {
        fit_unit_to_states<R>(unit, largest_state<R>(S, M), S, M);
      }

      // X: XS^T = S^T K^T, then XM^T = M^T K^T.
      float XS[32];
      [[maybe_unused]] float XM[32];
      shared.k_ring.wait_full(i, k_ready);
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        if (pair > 0) {  // nothing is in flight before
          ptx::wgmma_wait<1>();
        }
        state_products<T, kHalfFirst, 2>(XS, S, shared.k[stage], 2 * pair);
      }
      shared.record_ring.wait_full(i, record_ready);
      shared.v_ring.wait_full(i, v_ready);
      const uint32_t v_address = ptx::shared_address(shared.v[stage][tile]) + lane_offset;
      float Wf[32];
      const float per_unit = unit.inverse;
      const auto begin_W = [&](int j) {  // V^T - e XS^T for 16 tokens
        uint32_t v[4];
        ptx::ldmatrix_trans(v, v_address + j * 2048);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const float2 e = parts::column_pair(vectors.e + column, 2 * j + word / 2);
          const float2 pair = ptx::unpack<T>(v[word]);
          const int at = 8 * j + 2 * word;
          Wf[at] = fmaf(-e.x, XS[at], per_unit * pair.x);
          Wf[at + 1] = fmaf(-e.y, XS[at + 1], per_unit * pair.y);
        }
      };
#pragma unroll
      for (int pair = 0; R::kMomentum && pair < kPairs; ++pair) {
        ptx::wgmma_wait<1>();
        state_products<T, kHalfFirst, 2>(XM, M, shared.k[stage], 2 * pair);
        if (pair == 1) {
          ptx::wgmma_touch(XS);
        }
        if (R::kWide && pair >= 1) {
          begin_W(pair - 1);
        }
      }
#pragma unroll
      for (int j = kPairs - 1; R::kWide && j < 4; ++j) {
        begin_W(j);
      }
      ptx::wgmma_wait<0>();
      if constexpr (R::kMomentum) {
        ptx::wgmma_touch(XM);
      } else {
        ptx::wgmma_touch(XS);
      }
#pragma unroll
      for (int j = 0; !R::kWide && j < 4; ++j) {
        begin_W(j);
      }
      shared.k_ring.release(i);
      shared.v_ring.release(i);

      // W^T = V^T - e XS^T + c XM^T
      uint32_t W[4][4];
#pragma unroll
      for (int j = 0; R::kMomentum && j < 8; ++j) {
        const float2 c = parts::column_pair(vectors.c + column, j);
#pragma unroll
        for (int at = 4 * j; at < 4 * j + 4; at += 2) {
          Wf[at] = fmaf(c.x, XM[at], Wf[at]);
          Wf[at + 1] = fmaf(c.y, XM[at + 1], Wf[at + 1]);
        }
      }
      fit_unit_to_W<R>(unit, Wf, vectors.w_limit, S, M);
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        parts::fragment<__half>(W[slice], Wf, slice);
      }

      // R: R'^T = W^T T^T
      float Rt[32];
      matrix_products<false>(Rt, W, ptx::shared_address(shared.record[stage] + kRecordT));

      // Q: S^T Q^T, then M^T Q^T. Under the former R' is rounded and parked in shared memory; under
      // the latter, or under the former alone, the states are scaled in place: the products in
      // flight hold rounded copies.
      float OS[32];
      [[maybe_unused]] float OM[32];
      const float a_end = vectors.a_end;
      constexpr int kGroup = R::kGroupQ;
      constexpr int kGroups = R::K / 16 / kGroup;
      shared.q_ring.wait_full(i, q_ready);
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        ptx::wgmma_wait<1>();
        state_products<T, !kHalfFirst, kGroup>(OS, S, shared.q[stage], kGroup * group);
        if (group == 1) {
          ptx::wgmma_touch(Rt);
          parts::store_transposed<__half>(park, Rt);
          __syncwarp();
        }
#pragma unroll
        for (int at = 8 * kGroup * group; !R::kMomentum && at < 8 * kGroup * (group + 1); ++at) {
          S[at] *= a_end;
        }
      }
      [[maybe_unused]] const float b_end = vectors.b_end;
      [[maybe_unused]] const float m_end = vectors.m_end;
      float O[32];
#pragma unroll
      for (int group = 0; R::kMomentum && group < kGroups; ++group) {
        ptx::wgmma_wait<1>();
        state_products<T, !kHalfFirst, kGroup>(OM, M, shared.q[stage], kGroup * group);
        if (group == 1) {
          ptx::wgmma_touch(OS);
        }
        if (R::kWide && group >= 1 && group <= 4) {
          scale_columns(O, OS, vectors.a + column, group - 1);
        }
#pragma unroll
        for (int at = 8 * kGroup * group; at < 8 * kGroup * (group + 1); ++at) {
          S[at] = fmaf(-b_end, M[at], a_end * S[at]);
          M[at] *= m_end;
        }
      }
#pragma unroll
      for (int j = kGroups - 1; R::kWide && j < 4; ++j) {
        scale_columns(O, OS, vectors.a + column, j);
      }
      const Chunk chunk = params.chunks[work.begin + i];
      shared.keys16_ring.wait_full(
          i);  // ends a basic block: what is above stays under the products
      ptx::wgmma_wait<0>();
      if constexpr (R::kMomentum) {
        ptx::wgmma_touch(OM);
      } else {
        ptx::wgmma_touch(OS);
      }
#pragma unroll
      for (int j = 0; !R::kWide && j < 4; ++j) {
        scale_columns(O, OS, vectors.a + column, j);
      }
      shared.q_ring.release(i);
#pragma unroll
      for (int j = 0; R::kMomentum && j < 8; ++j) {  // O^T = a OS^T - b OM^T
        const float2 b = parts::column_pair(vectors.b + column, j);
#pragma unroll
        for (int at = 4 * j; at < 4 * j + 4; at += 2) {
          O[at] = fmaf(-b.x, OM[at], O[at]);
          O[at + 1] = fmaf(-b.y, OM[at + 1], O[at + 1]);
        }
      }

      // U: O^T += R'^T PGD^T, then S^T += (g R')^T K, M^T -= (n R')^T K.
      uint32_t R16[4][4];
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        ptx::ldmatrix_trans(R16[slice], park + slice * 2048);
      }
      const uint32_t PGD = ptx::shared_address(shared.record[stage] + kRecordPGD);
      const uint32_t keys16 = ptx::shared_address(shared.keys16[stage]);
      touch_states<R>(S, M);
      matrix_products<true>(O, R16, PGD);
      write_states<R>(S, M, R16, vectors, column, keys16);

      // The output, under the updates.
      ptx::wgmma_wait<R::kMomentum ? 2 : 1>();
      ptx::wgmma_touch(O);
      uint4 words[4];
      turn_output<T, 64>(words, shared.turn[tile], O, unit.value, warp, lane);
      write_output<T, 64>(params, work, chunk, words, work.value + 64 * tile, warp, lane, 0);
      ptx::wgmma_wait<0>();
      touch_states<R>(S, M);
      shared.keys16_ring.release(i);
      shared.record_ring.release(i);
    }
    end_part<R>(S, M, params, work, 64 * tile + 16 * warp + lane / 4, column, 4 * tile + warp,
                unit.value);
  }
}

template <class R>
__global__ void __launch_bounds__(R::kThreads, 1)
    recurrence(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
               const __grid_constant__ CUtensorMap v_map,
               const __grid_constant__ RecurrenceParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<RecurrenceShared<R>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  // The same in all lanes, which this tells the compiler: addresses made of it stay uniform.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, thread / 128, 0);
  if (thread == 0) {
    shared.init(params);
  }
  __syncthreads();
  if (warpgroup == R::kTiles) {
    if constexpr (R::kTiles == 2) {
      ptx::registers_decrease<24>();
    }
    serve<R>(shared, q_map, k_map, v_map, params, thread - 128 * R::kTiles);
  } else {
    if constexpr (R::kTiles == 2) {
      ptx::registers_increase<240>();
    }
    walk_tile<R>(shared, params, warpgroup, thread % 128);
  }
}

}  // namespace mdn::kernels::cuda::hopper
