// The affine map of a segment (hopper_segments.h): the recurrence of hopper_recurrence.cuh without
// queries and outputs, for two tiles of 64 columns a block. A tile is of one of three kinds:
//
//     values   64 value channels from zero states (first segment: the initial ones): b
//     S or M   v = 0, from 64 unit vectors of S or of M: rows of A
//
// Per chunk, as there:
//
//     X:  XS^T = S^T K^T, XM^T = M^T K^T
//         W^T = V^T - e XS^T + c XM^T
//     R:  R'^T = W^T T^T
//     U:  S^T = a_C S^T - b_C M^T + (g R')^T K,  M^T = m M^T - (n R')^T K
//
// A column that reaches the end of units (2^60), or is not finite, makes the starts of the segments
// behind it unknown.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"

namespace mdn::kernels::cuda::hopper {

template <class Element, int kKeyChannels, bool kHasMomentum>
struct SegmentMapTraits {
  using T = Element;
  static constexpr int K = kKeyChannels;
  static constexpr bool kMomentum = kHasMomentum;
  static constexpr int X = kMomentum ? 2 * K : K;
  static constexpr int kBoxes = K / 64;
  static constexpr int kPairs = K / 32;  // of slices of 16 key channels
  static constexpr int kStages = 2;
  static constexpr int kTiles = 2;
  static constexpr int kThreads = 128 * (kTiles + 1);
  static_assert(K == 64 || K == 128);
};

struct SegmentMapParams {
  const Chunk* chunks;
  const int32_t* begin;  // chunks of a sequence, chunk_table.h
  const char* records;
  Progress* progress;
  const float* initial_S;  // [N, HV, V, K], null: zeros
  const float* initial_M;
  SegmentMemory memory;
  int segments;  // of a sequence
  int HV;
  int group;  // value heads a query/key head
  int V;
};

struct SegmentMapWork {
  int sequence;
  int segment;
  int head;
  int first_tile;   // of the block's two: V / 64 of values, then X / 64 of A
  int value_tiles;  // of the block's
  int begin;        // chunk table entries
  int chunks;       // 0: nothing to do
};

/// The blocks of a segment and head are neighbours: they read the same k and records.
template <class R>
__device__ __forceinline__ SegmentMapWork segment_map_work(const SegmentMapParams& params) {
  const int values = params.V / 64;
  const int parts = (values + R::X / 64 + 1) / 2;
  int block = static_cast<int>(blockIdx.x);
  SegmentMapWork work;
  work.first_tile = block % parts * 2;
  block /= parts;
  work.head = block % params.HV;
  block /= params.HV;
  work.segment = block % params.segments;
  work.sequence = block / params.segments;
  work.value_tiles = min(max(values - work.first_tile, 0), 2);
  const int first = params.begin[work.sequence];
  const int chunks = params.begin[work.sequence + 1] - first;
  const int from = segment_begin(chunks, work.segment, params.segments);
  work.begin = first + from;
  const bool wanted = work.segment == 0 ? work.value_tiles > 0 : work.segment < params.segments - 1;
  work.chunks = wanted ? segment_begin(chunks, work.segment + 1, params.segments) - from : 0;
  return work;
}

inline constexpr int kMapRecordVectors = 8192;  // behind T
inline constexpr int kMapRecordStage = 11 * 1024;

template <class R>
struct SegmentMapShared {
  alignas(1024) char k[R::kStages][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char keys16[R::kStages][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char record[R::kStages][kMapRecordStage];  // T and the vectors
  alignas(1024) char v[R::kStages][R::kTiles][ptx::kBoxBytes];
  SegmentMapWork work;
  Unit units[R::kTiles][4];  // a warp's
  Ring<R::kStages> k_ring;
  Ring<R::kStages> keys16_ring;
  Ring<R::kStages> record_ring;
  Ring<R::kStages> v_ring;

  __device__ int chunks() const { return work.chunks; }
  __device__ const ChunkVectors& vectors(int stage) const {
    return *reinterpret_cast<const ChunkVectors*>(record[stage] + kMapRecordVectors);
  }
};

/// One thread: a chunk's tiles as soon as their stages are free.
template <class R>
__device__ __forceinline__ void load_map_tiles(SegmentMapShared<R>& shared,
                                               const CUtensorMap& k_map, const CUtensorMap& v_map,
                                               const SegmentMapParams& params) {
  const SegmentMapWork work = shared.work;
  const int key_head = work.head / params.group;
  for (int i = 0; i < work.chunks; ++i) {
    const int64_t entry = work.begin + i;
    const int token = static_cast<int>(params.chunks[entry].token);
    const int stage = i % R::kStages;
    load_boxes<R::kBoxes>(shared.k_ring, i, shared.k[stage], k_map, 0, key_head, token);
    const char* record = ready_record(params, entry, work.head);
    uint64_t* full = &shared.record_ring.full[stage];
    shared.record_ring.wait_empty(i);
    ptx::mbarrier_arrive_expect(full, ptx::kBoxBytes + sizeof(ChunkVectors));
    ptx::bulk_load(shared.record[stage], record + kRecordT, ptx::kBoxBytes, full);
    ptx::bulk_load(shared.record[stage] + kMapRecordVectors, record + kRecordVectors,
                   sizeof(ChunkVectors), full);
    const int channel = 64 * work.first_tile;
    if (work.value_tiles == 2) {
      load_boxes<2>(shared.v_ring, i, shared.v[stage], v_map, channel, work.head, token);
    } else if (work.value_tiles == 1) {
      load_boxes<1>(shared.v_ring, i, shared.v[stage], v_map, channel, work.head, token);
    }
  }
}

/// X = rows of the unit matrix: row 16 warp + lane / 4 + 8 i of the tile is key channel `row` + 8
/// i.
template <int kRegisters>
__device__ __forceinline__ void set_units(float (&X)[kRegisters], int row, int column) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < kRegisters / 4; ++j) {
      X[4 * j + 2 * i] = row + 8 * i == 8 * j + column ? 1.0f : 0.0f;
      X[4 * j + 2 * i + 1] = row + 8 * i == 8 * j + column + 1 ? 1.0f : 0.0f;
    }
  }
}

/// Sum of x^2 over the row 8 i of this thread's fragment, in all lanes of its quad.
template <int kRegisters>
__device__ __forceinline__ float row_square(const float (&X)[kRegisters], int i, float unit) {
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kRegisters / 4; ++j) {
    const float x = unit * X[4 * j + 2 * i];
    const float y = unit * X[4 * j + 2 * i + 1];
    sum = fmaf(x, x, fmaf(y, y, sum));
  }
  sum += __shfl_xor_sync(0xFFFFFFFF, sum, 1);
  sum += __shfl_xor_sync(0xFFFFFFFF, sum, 2);
  return sum;
}

/// One consumer warpgroup.
template <class R>
__device__ __forceinline__ void walk_map_tile(SegmentMapShared<R>& shared,
                                              const SegmentMapParams& params, int tile,
                                              int thread) {
  using T = typename R::T;
  using ptx::Major;
  constexpr int kPairs = R::kPairs;
  const int warp = __shfl_sync(0xFFFFFFFF, thread / 32, 0);
  const int lane = thread % 32;
  const int column = 2 * (lane % 4);
  const uint32_t lane_offset = parts::transposed_lane(0, warp, lane);
  const bool has_values = tile < shared.work.value_tiles;
  float S[R::K / 2];
  [[maybe_unused]] float M[R::K / 2];
  {
    const SegmentMapWork& work = shared.work;
    const int row = 16 * warp + lane / 4;
    const int channel = 64 * (work.first_tile + tile) + row;  // of V, then of X
    if (has_values) {
      const bool given = work.segment == 0;
      const int64_t at =
          ((int64_t{work.sequence} * params.HV + work.head) * params.V + channel) * R::K + column;
      load_states<R>(S, M, given ? params.initial_S : nullptr, given ? params.initial_M : nullptr,
                     at);
    } else {  // channels of M, and those past X, find no unit vector in S
      set_units(S, channel - params.V, column);
      if constexpr (R::kMomentum) {
        set_units(M, channel - params.V - R::K, column);
      }
    }
  }
  Unit& unit = shared.units[tile][warp];
  begin_unit(unit);
  bool lost = false;  // the warp's
  const int chunks = shared.work.chunks;

  for (int i = 0; i < chunks; ++i) {
    const int stage = i % R::kStages;
    const ChunkVectors& vectors = shared.vectors(stage);
    const bool k_ready = shared.k_ring.try_full(i);  // asked together: one latency
    const bool record_ready = shared.record_ring.try_full(i);

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
      state_products<T, false, 2>(XS, S, shared.k[stage], 2 * pair);
    }
#pragma unroll
    for (int pair = 0; R::kMomentum && pair < kPairs; ++pair) {
      ptx::wgmma_wait<1>();
      state_products<T, false, 2>(XM, M, shared.k[stage], 2 * pair);
      if (pair == 1) {
        ptx::wgmma_touch(XS);
      }
    }
    shared.record_ring.wait_full(i, record_ready);
    ptx::wgmma_wait<0>();
    if constexpr (R::kMomentum) {
      ptx::wgmma_touch(XM);
    } else {
      ptx::wgmma_touch(XS);
    }
    shared.k_ring.release(i);

    // W^T = V^T - e XS^T + c XM^T, in the place of XS
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 e = parts::column_pair(vectors.e + column, j);
#pragma unroll
      for (int at = 4 * j; at < 4 * j + 4; at += 2) {
        XS[at] *= -e.x;
        XS[at + 1] *= -e.y;
        if constexpr (R::kMomentum) {
          const float2 c = parts::column_pair(vectors.c + column, j);
          XS[at] = fmaf(c.x, XM[at], XS[at]);
          XS[at + 1] = fmaf(c.y, XM[at + 1], XS[at + 1]);
        }
      }
    }
    if (has_values) {
      const uint32_t v_address = ptx::shared_address(shared.v[stage][tile]) + lane_offset;
      const float per_unit = unit.inverse;
      shared.v_ring.wait_full(i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        uint32_t v[4];
        ptx::ldmatrix_trans(v, v_address + j * 2048);
#pragma unroll
        for (int word = 0; word < 4; ++word) {
          const float2 pair = ptx::unpack<T>(v[word]);
          const int at = 8 * j + 2 * word;
          XS[at] = fmaf(per_unit, pair.x, XS[at]);
          XS[at + 1] = fmaf(per_unit, pair.y, XS[at + 1]);
        }
      }
      shared.v_ring.release(i);
    }
    fit_unit_to_W<R>(unit, XS, vectors.w_limit, S, M);
    lost |= unit.value >= 0x1p60f;

    // R: R'^T = W^T T^T; the states decay in place under it.
    uint32_t W[4][4];
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      parts::fragment<__half>(W[slice], XS, slice);
    }
    float Rt[32];
    matrix_products<false>(Rt, W, ptx::shared_address(shared.record[stage]));
    decay_states<R>(S, M, vectors);
    shared.keys16_ring.wait_full(i);  // ends a basic block: what is above stays under the products
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(Rt);

    // U: S^T += (g R')^T K, M^T -= (n R')^T K.
    uint32_t R16[4][4];
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      parts::fragment<__half>(R16[slice], Rt, slice);
    }
    const uint32_t keys16 = ptx::shared_address(shared.keys16[stage]);
    write_states<R>(S, M, R16, vectors, column, keys16);
    ptx::wgmma_wait<0>();
    touch_states<R>(S, M);
    shared.keys16_ring.release(i);
    shared.record_ring.release(i);
  }

  const SegmentMapWork& work = shared.work;
  const int channel = 64 * (work.first_tile + tile) + 16 * warp + lane / 4;
  const int64_t state = int64_t{work.sequence} * params.segments + work.segment;
  const float size = unit.value;
  if (has_values) {
    const int64_t at = (((state + 1) * params.HV + work.head) * params.V + channel) * R::K + column;
    store_states<R>(S, M, params.memory.start_S, params.memory.start_M, at, size);
  } else if (channel - params.V < R::X) {
    const int64_t row = (state * params.HV + work.head) * R::X + channel - params.V;
    store_state(S, params.memory.maps, row * R::X + column, R::X, size);
    if constexpr (R::kMomentum) {
      store_state(M, params.memory.maps, row * R::X + R::K + column, R::X, size);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float of_S = row_square(S, i, size);
      float of_M = 0;
      if constexpr (R::kMomentum) {
        of_M = row_square(M, i, size);
      }
      lost |= !(of_S + of_M < 0x1p126f);
      if (lane % 4 == 0) {
        reinterpret_cast<float2*>(params.memory.norms)[row + 8 * i] = {of_S, of_M};
      }
    }
  }
  if (lost) {
    atomicMax(params.memory.unknown + int64_t{work.sequence} * params.HV + work.head,
              static_cast<uint32_t>(params.segments - 1 - work.segment));
  }
}

template <class R>
__global__ void __launch_bounds__(R::kThreads, 1)
    segment_map(const __grid_constant__ CUtensorMap k_map,
                const __grid_constant__ CUtensorMap v_map,
                const __grid_constant__ SegmentMapParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<SegmentMapShared<R>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  // The same in all lanes, which this tells the compiler: addresses made of it stay uniform.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, thread / 128, 0);
  if (thread == 0) {
    constexpr int kConsumers = 128 * R::kTiles;
    const SegmentMapWork work = segment_map_work<R>(params);
    shared.work = work;
    shared.k_ring.init(1, kConsumers + kConverters);
    shared.keys16_ring.init(kConverters, kConsumers);
    shared.record_ring.init(1, kConsumers + kConverters);
    shared.v_ring.init(1, work.value_tiles == 0 ? 1 : 128 * work.value_tiles);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  if (shared.work.chunks == 0) {  // block 0 has chunks, and this kernel must not end before prepare
    return;
  }
  if (warpgroup == R::kTiles) {
    ptx::registers_decrease<24>();
    const int role = thread - 128 * R::kTiles;
    if (role == 0) {
      load_map_tiles<R>(shared, k_map, v_map, params);
      ptx::wait_for_dependencies();
    } else if (role >= 32) {
      convert_keys<typename R::T>(shared, role - 32);
    }
  } else {
    ptx::registers_increase<240>();
    walk_map_tile<R>(shared, params, warpgroup, thread % 128);
  }
}

}  // namespace mdn::kernels::cuda::hopper
