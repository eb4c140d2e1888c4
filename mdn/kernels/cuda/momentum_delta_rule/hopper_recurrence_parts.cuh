// What the two recurrences share (hopper_recurrence.cuh, hopper_recurrence_split.cuh; parts of it
// also hopper_segment_map.cuh): arguments, stages and who fills them, the states in global memory,
// units, steps of a chunk, and the way of the output.
//
// Units. fp16 ends at 65504, and states, W and R grow past it where gates allow it. A warp's 16
// value channels never mix with others, and everything is linear in them, so a warp counts its
// states, W, R' and O in a unit of its own, a power of two: V is divided by it, O and the final
// states are multiplied. It is 1 until a chunk's largest |W| leaves [w_limit / 64 or 1 / 64 (the
// smaller), w_limit] of the chunk's record (hopper_saved.h); then the largest |W| is brought to
// about w_limit / 4 or 1 (again the smaller), and the states with it. With fp16 inputs the states
// are rounded to fp16 too: there a unit is at least 1 and also changes where a chunk begins with a
// state past 32768. Units end at 2^60: a run that grows without bound saturates there, finite.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence_work.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/parts/fragment.cuh"
#include "mdn/kernels/cuda/parts/tile.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/registers.cuh"
#include "mdn/kernels/cuda/ptx/tensor_map.h"
#include "mdn/kernels/cuda/ptx/tma.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::hopper {

inline constexpr int kRecordStage = 19 * 1024;
static_assert(kRecordStage >= kRecordBytes);
inline constexpr int kConverters = 96;  // threads

/// A ring of stages: `full` ends when data is there, `empty` when everyone has read it: every lane
/// arrives for what it has read or written itself. `i` counts the uses.
template <int kStages>
struct Ring {
  uint64_t full[kStages];
  uint64_t empty[kStages];

  __device__ void init(int producers, int consumers) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(&full[i], producers);
      ptx::mbarrier_init(&empty[i], consumers);
    }
  }
  __device__ __forceinline__ bool try_full(int i) {
    return ptx::mbarrier_try_wait(&full[i % kStages], (i / kStages) & 1);
  }
  __device__ __forceinline__ bool try_empty(int i) {
    return ptx::mbarrier_try_wait(&empty[i % kStages], ((i / kStages) & 1) ^ 1);
  }
  __device__ __forceinline__ void wait_full(int i, bool ready = false) {
    while (!ready) {
      ready = try_full(i);
    }
  }
  __device__ __forceinline__ void wait_empty(int i, bool ready = false) {
    while (!ready) {
      ready = try_empty(i);
    }
  }
  __device__ __forceinline__ void release(int i) { ptx::mbarrier_arrive(&empty[i % kStages]); }
};

/// Loads boxes of 64 channels, from `channel` on, of 64 tokens.
template <int kBoxes, int kStages>
__device__ __forceinline__ void load_boxes(Ring<kStages>& ring, int i,
                                           char (*boxes)[ptx::kBoxBytes], const CUtensorMap& map,
                                           int channel, int head, int token) {
  uint64_t* full = &ring.full[i % kStages];
  ring.wait_empty(i);
  ptx::mbarrier_arrive_expect(full, kBoxes * ptx::kBoxBytes);
#pragma unroll
  for (int box = 0; box < kBoxes; ++box) {
    ptx::tma_load(boxes[box], &map, full, channel + box * 64, head, token);
  }
}

/// The record of a chunk table entry and value head, when it is there.
template <class Params>
__device__ __forceinline__ const char* ready_record(const Params& params, int64_t entry, int head) {
  const int64_t index = entry * params.HV + head;
  wait_ready(ready_words(params.progress) + index);
  return params.records + index * kRecordBytes;
}

/// The converter warps: keys16 = fp16(rk K), for all chunks of the block.
template <class T, class Shared>
__device__ __forceinline__ void convert_keys(Shared& shared, int thread) {
  constexpr int kStages = std::extent_v<decltype(Shared::k)>;
  constexpr int kStages16 = std::extent_v<decltype(Shared::keys16)>;
  const int chunks = shared.chunks();
  for (int i = 0; i < chunks; ++i) {
    const int stage = i % kStages;
    shared.record_ring.wait_full(i);
    shared.k_ring.wait_full(i);
    shared.keys16_ring.wait_empty(i);
    parts::convert_rows<T, kConverters>(
        ptx::shared_address(shared.keys16[i % kStages16]), ptx::shared_address(shared.k[stage]),
        sizeof(shared.k[stage]), kChunk, shared.vectors(stage).rk, thread);
    ptx::fence_async_shared();
    ptx::mbarrier_arrive(&shared.keys16_ring.full[i % kStages16]);
    shared.k_ring.release(i);
    shared.record_ring.release(i);
  }
}

/// What a block of a recurrence keeps of its chunks in shared memory. R::kTiles: of 64 value
/// channels; R::kStages of everything, but of q and keys16 R::kLateStages.
template <class R>
struct RecurrenceStages {
  alignas(1024) char q[R::kLateStages][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char k[R::kStages][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char keys16[R::kLateStages][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char record[R::kStages][kRecordStage];
  alignas(1024) char v[R::kStages][R::kTiles][ptx::kBoxBytes];
  RecurrenceWork works[kMaxParts];  // here they take no registers
  int parts;
  Ring<R::kLateStages> q_ring;
  Ring<R::kStages> k_ring;
  Ring<R::kLateStages> keys16_ring;
  Ring<R::kStages> record_ring;
  Ring<R::kStages> v_ring;

  /// One thread, with the block's work.
  __device__ __forceinline__ void init(const RecurrenceParams& params) {
    constexpr int kConsumers = R::kThreads - 128;
    q_ring.init(1, kConsumers);
    k_ring.init(1, kConsumers + kConverters);
    keys16_ring.init(kConverters, kConsumers);
    record_ring.init(1, kConsumers + kConverters);
    v_ring.init(1, kConsumers);
    ptx::mbarrier_init_fence();
    parts = block_works(works, params, R::kTiles);
  }
  /// Of all parts.
  __device__ int chunks() const { return works[parts - 1].to; }
  __device__ const ChunkVectors& vectors(int stage) const {
    return *reinterpret_cast<const ChunkVectors*>(record[stage] + kRecordVectors);
  }
};

/// One thread: a chunk's tiles as soon as their stages are free.
template <class R>
__device__ __forceinline__ void load_tiles(RecurrenceStages<R>& shared, const CUtensorMap& q_map,
                                           const CUtensorMap& k_map, const CUtensorMap& v_map,
                                           const RecurrenceParams& params) {
  for (int part = 0; part < shared.parts; ++part) {
    const RecurrenceWork work = shared.works[part];
    const int key_head = work.head / params.group;
    // Chunks of a sequence follow each other: one read from memory.
    int token =
        work.from == work.to ? 0 : static_cast<int>(params.chunks[work.begin + work.from].token);
    for (int i = work.from; i < work.to; ++i, token += kChunk) {
      const int64_t entry = work.begin + i;
      const int stage = i % R::kStages;
      load_boxes<R::kBoxes>(shared.k_ring, i, shared.k[stage], k_map, 0, key_head, token);
      const char* record = ready_record(params, entry, work.head);
      uint64_t* full = &shared.record_ring.full[stage];
      shared.record_ring.wait_empty(i);
      ptx::mbarrier_arrive_expect(full, kRecordBytes);
      ptx::bulk_load(shared.record[stage], record, kRecordBytes, full);
      load_boxes<R::kTiles>(shared.v_ring, i, shared.v[stage], v_map, work.value, work.head, token);
      load_boxes<R::kBoxes>(shared.q_ring, i, shared.q[i % R::kLateStages], q_map, 0, key_head,
                            token);
    }
  }
}

/// The warpgroup beside the consumers: one thread of its first warp loads, its other warps convert.
template <class R>
__device__ __forceinline__ void serve(RecurrenceStages<R>& shared, const CUtensorMap& q_map,
                                      const CUtensorMap& k_map, const CUtensorMap& v_map,
                                      const RecurrenceParams& params, int thread) {
  if (thread >= 32) {
    convert_keys<typename R::T>(shared, thread - 32);
  } else if (ptx::elect_one()) {
    load_tiles<R>(shared, q_map, k_map, v_map, params);
    ptx::wait_for_dependencies();  // this kernel must not end before prepare
  }
}

/// Row of [.., HV, V] of the n-th states that holds channel work.value + `channel`.
__device__ __forceinline__ int64_t state_row(int n, const RecurrenceWork& work,
                                             const RecurrenceParams& params, int channel) {
  return (int64_t{n} * params.HV + work.head) * params.V + work.value + channel;
}

/// X in wgmma's accumulator layout; `offset` is that of this thread's first element, rows K apart.
template <int kRegisters>
__device__ __forceinline__ void load_state(float (&X)[kRegisters], const float* from,
                                           int64_t offset, int K) {
  if (from == nullptr) {
#pragma unroll
    for (float& x : X) {
      x = 0;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float* row = from + offset + 8 * i * K;
#pragma unroll
    for (int j = 0; j < kRegisters / 4; ++j) {
      const float2 pair = *reinterpret_cast<const float2*>(row + 8 * j);
      X[4 * j + 2 * i] = pair.x;
      X[4 * j + 2 * i + 1] = pair.y;
    }
  }
}

template <int kRegisters>
__device__ __forceinline__ void store_state(const float (&X)[kRegisters], float* to, int64_t offset,
                                            int K, float unit) {
  if (to == nullptr) {
    return;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float* row = to + offset + 8 * i * K;
#pragma unroll
    for (int j = 0; j < kRegisters / 4; ++j) {
      *reinterpret_cast<float2*>(row + 8 * j) = {unit * X[4 * j + 2 * i],
                                                 unit * X[4 * j + 2 * i + 1]};
    }
  }
}

/// A warp's unit, in shared memory, where it takes no registers.
struct Unit {
  float value;
  float inverse;
};

/// One lane's store, seen by the warp.
__device__ __forceinline__ void begin_unit(Unit& unit) {
  __syncwarp();  // all lanes have read that of the part before
  if (ptx::elect_one()) {
    unit = {1.0f, 1.0f};
  }
  __syncwarp();
}

template <int kCount>
__device__ __forceinline__ void scale_all(float (&x)[kCount], float factor) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] *= factor;
  }
}

/// Changes the warp's unit so that `largest` comes to about `target`, the unit staying within
/// [smallest, 2^60]. Returns the power of two that numbers in the old unit are multiplied with.
__device__ __forceinline__ float change_unit(Unit& unit, float largest, float target,
                                             float smallest) {
  const auto exponent = [](float x) { return static_cast<int>(__float_as_uint(x) >> 23) - 127; };
  const int old = exponent(unit.value);
  const int change = min(max(old + exponent(largest) - exponent(target), exponent(smallest)), 60);
  const auto power = [](int e) { return __uint_as_float(static_cast<uint32_t>(e + 127) << 23); };
  __syncwarp();  // all lanes have read it
  if (ptx::elect_one()) {
    unit = {power(change), power(-change)};
  }
  __syncwarp();
  return power(min(max(old - change, -126), 127));
}

/// Changes the unit where W asks for it: `largest` is W's, of the warp. `states`: S, and M where
/// there is one.
template <class T, int... kRegisters>
__device__ __forceinline__ void fit_unit(Unit& unit, float (&W)[32], float largest, float limit,
                                         float (&... states)[kRegisters]) {
  const bool small = std::is_same_v<T, __nv_bfloat16> && largest > 0.0f &&
                     largest < 0.015625f * fminf(limit, 1.0f);
  if (largest > limit || small) {
    const float factor = change_unit(unit, largest, fminf(0.25f * limit, 1.0f),
                                     std::is_same_v<T, __half> ? 1.0f : 0x1p-60f);
#pragma unroll
    for (float& x : W) {
      x = fminf(fmaxf(factor * x, -limit), limit);  // past it only where units end
    }
    (scale_all(states, factor), ...);
  }
}

/// fp16 inputs: changes the unit where a chunk begins with states past 32768, and back towards 1
/// where all of them have become small; `largest` is that of all key channels.
template <int... kRegisters>
__device__ __forceinline__ void fit_states(Unit& unit, float largest,
                                           float (&... states)[kRegisters]) {
  if (largest > 32768.0f || (unit.value > 1.0f && largest < 16.0f)) {
    const float factor = change_unit(unit, largest, 1024.0f, 1.0f);
    (scale_all(states, factor), ...);
  }
}

// Steps of a chunk. S^T and M^T are accumulators of a warpgroup, M without momentum (R::kMomentum
// false) nothing; R' and W are fp16 operands of 64 tokens; `column` is 2 (lane % 4).

template <class R, int kRegisters>
__device__ __forceinline__ void load_states(float (&S)[kRegisters], float (&M)[kRegisters],
                                            const float* from_S, const float* from_M,
                                            int64_t offset) {
  load_state(S, from_S, offset, R::K);
  if constexpr (R::kMomentum) {
    load_state(M, from_M, offset, R::K);
  }
}

template <class R, int kRegisters>
__device__ __forceinline__ void store_states(const float (&S)[kRegisters],
                                             const float (&M)[kRegisters], float* to_S, float* to_M,
                                             int64_t offset, float unit) {
  store_state(S, to_S, offset, R::K, unit);
  if constexpr (R::kMomentum) {
    store_state(M, to_M, offset, R::K, unit);
  }
}

/// The states that a part begins with: this thread's from `channel` of the block's and `key` on.
/// `warp`: of the block's.
template <class R, int kRegisters>
__device__ __forceinline__ void begin_part(float (&S)[kRegisters], float (&M)[kRegisters],
                                           const RecurrenceParams& params,
                                           const RecurrenceWork& work, int channel, int key,
                                           int warp) {
  if (work.received < 0) {
    const int64_t row = state_row(work.start, work, params, channel);
    load_states<R>(S, M, params.initial_S, params.initial_M, row * R::K + key);
  } else {
    constexpr int kChannels = 64 * R::kTiles;
    const int64_t row = int64_t{work.received} * (2 * kChannels) + channel;
    wait_word(handed_words(params, work.received) + warp);
    load_states<R>(S, M, params.handed.states, params.handed.states + kChannels * R::K,
                   row * R::K + key);
  }
}

/// Likewise leaves those that it ends with.
template <class R, int kRegisters>
__device__ __forceinline__ void end_part(const float (&S)[kRegisters], const float (&M)[kRegisters],
                                         const RecurrenceParams& params, const RecurrenceWork& work,
                                         int channel, int key, int warp, float unit) {
  if (work.handed >= 0) {
    constexpr int kChannels = 64 * R::kTiles;
    const int64_t row = int64_t{work.handed} * (2 * kChannels) + channel;
    store_states<R>(S, M, params.handed.states, params.handed.states + kChannels * R::K,
                    row * R::K + key, unit);
    hand_over(handed_words(params, work.handed) + warp);
  } else if (work.ends) {
    const int64_t row = state_row(work.sequence, work, params, channel);
    store_states<R>(S, M, params.final_S, params.final_M, row * R::K + key, unit);
  }
}

/// fit_unit and fit_states with the states that there are.
template <class R, int kRegisters>
__device__ __forceinline__ void fit_unit_to_W(Unit& unit, float (&W)[32], float limit,
                                              float (&S)[kRegisters], float (&M)[kRegisters]) {
  const float largest = largest_of_warp(largest_of(W));
  if constexpr (R::kMomentum) {
    fit_unit<typename R::T>(unit, W, largest, limit, S, M);
  } else {
    fit_unit<typename R::T>(unit, W, largest, limit, S);
  }
}

template <class R, int kRegisters>
__device__ __forceinline__ float largest_state(const float (&S)[kRegisters],
                                               const float (&M)[kRegisters]) {
  float largest = largest_of(S);
  if constexpr (R::kMomentum) {
    largest = fmaxf(largest, largest_of(M));
  }
  return largest_of_warp(largest);
}

template <class R, int kRegisters>
__device__ __forceinline__ void fit_unit_to_states(Unit& unit, float largest,
                                                   float (&S)[kRegisters], float (&M)[kRegisters]) {
  if constexpr (R::kMomentum) {
    fit_states(unit, largest, S, M);
  } else {
    fit_states(unit, largest, S);
  }
}

/// Products write the states here: ptx::wgmma_touch.
template <class R, int kRegisters>
__device__ __forceinline__ void touch_states(float (&S)[kRegisters], float (&M)[kRegisters]) {
  ptx::wgmma_touch(S);
  if constexpr (R::kMomentum) {
    ptx::wgmma_touch(M);
  }
}

/// S^T = a_C S^T - b_C M^T and M^T = m M^T.
template <class R, int kRegisters>
__device__ __forceinline__ void decay_states(float (&S)[kRegisters], float (&M)[kRegisters],
                                             const ChunkVectors& vectors) {
  const float a_end = vectors.a_end;
  if constexpr (R::kMomentum) {
    const float b_end = vectors.b_end;
    const float m_end = vectors.m_end;
#pragma unroll
    for (int at = 0; at < kRegisters; ++at) {
      S[at] = fmaf(-b_end, M[at], a_end * S[at]);
      M[at] *= m_end;
    }
  } else {
    scale_all(S, a_end);
  }
}

/// out (+)= a times the transpose of a matrix of the record, one group of products.
template <bool kAdd, int kRegisters>
__device__ __forceinline__ void matrix_products(float (&out)[kRegisters], const uint32_t (&a)[4][4],
                                                uint32_t matrix) {
  ptx::wgmma_fence();
#pragma unroll
  for (int slice = 0; slice < 4; ++slice) {
    ptx::wgmma_ra<__half, ptx::Major::kK>(out, a[slice], ptx::descriptor_k(matrix + slice * 32),
                                          kAdd || slice != 0);
  }
  ptx::wgmma_commit();
}

/// X^T += sign (vector R')^T K, one group; keys16: the fp16 keys of X's channels.
template <int kRegisters>
__device__ __forceinline__ void write_products(float (&X)[kRegisters], const uint32_t (&R16)[4][4],
                                               const float* vector, float sign, uint32_t keys16) {
  uint32_t a[4][4];
#pragma unroll
  for (int slice = 0; slice < 4; ++slice) {
    parts::scaled_fragment(a[slice], R16[slice], vector, slice, sign);
  }
  ptx::wgmma_touch(X);
  ptx::wgmma_fence();
#pragma unroll
  for (int slice = 0; slice < 4; ++slice) {
    ptx::wgmma_ra<__half, ptx::Major::kMN>(
        X, a[slice], ptx::descriptor_mn(keys16 + slice * 2048, ptx::kBoxBytes));
  }
  ptx::wgmma_commit();
}

/// S^T += (g R')^T K, then M^T -= (n R')^T K.
template <class R, int kRegisters>
__device__ __forceinline__ void write_states(float (&S)[kRegisters], float (&M)[kRegisters],
                                             const uint32_t (&R16)[4][4],
                                             const ChunkVectors& vectors, int column,
                                             uint32_t keys16) {
  write_products(S, R16, vectors.g + column, 1.0f, keys16);
  if constexpr (R::kMomentum) {
    write_products(M, R16, vectors.n + column, -1.0f, keys16);
  }
}

/// unit times O^T of kTokens tokens, 16 value channels a warp, turned in the warp's own part of
/// `box`: word quad `at` of a lane holds token 16 at + lane / 2, 8 channels.
template <class T, int kTokens>
__device__ __forceinline__ void turn_output(uint4 (&words)[kTokens / 16], const char* box,
                                            const float (&O)[kTokens / 2], float unit, int warp,
                                            int lane) {
  const uint32_t address = ptx::shared_address(box);
  __syncwarp();  // what lay there has been read
#pragma unroll
  for (int j = 0; j < kTokens / 8; j += 2) {
    ptx::stmatrix_trans(parts::transposed_lane(address, warp, lane) + j * 1024,
                        ptx::pack<T>(unit * O[4 * j], unit * O[4 * j + 1]),
                        ptx::pack<T>(unit * O[4 * j + 2], unit * O[4 * j + 3]),
                        ptx::pack<T>(unit * O[4 * j + 4], unit * O[4 * j + 5]),
                        ptx::pack<T>(unit * O[4 * j + 6], unit * O[4 * j + 7]));
  }
  __syncwarp();
  const int row = lane / 2;
  const int column = 8 * (2 * warp + lane % 2);
#pragma unroll
  for (int at = 0; at < kTokens / 16; ++at) {
    uint4& x = words[at];
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(address + parts::box_offset(row, column) + at * 2048)
                 : "memory");
  }
}

/// The same to global memory, whole 32-byte sectors; tokens `first` .. of the chunk.
template <class T, int kTokens>
__device__ __forceinline__ void write_output(const RecurrenceParams& params,
                                             const RecurrenceWork& work, const Chunk& chunk,
                                             const uint4 (&words)[kTokens / 16], int value,
                                             int warp, int lane, int first) {
  const int row = first + lane / 2;
  const int64_t stride = int64_t{params.HV} * params.V;
  auto* o = static_cast<T*>(params.o) + (chunk.token + row) * stride +
            int64_t{work.head} * params.V + value + (2 * warp + lane % 2) * 8;
  if (chunk.length == kChunk) {
#pragma unroll
    for (int at = 0; at < kTokens / 16; ++at) {
      *reinterpret_cast<uint4*>(o + at * 16 * stride) = words[at];
    }
  } else {
#pragma unroll
    for (int at = 0; at < kTokens / 16; ++at) {
      if (at * 16 + row < chunk.length) {
        *reinterpret_cast<uint4*>(o + at * 16 * stride) = words[at];
      }
    }
  }
}

}  // namespace mdn::kernels::cuda::hopper
