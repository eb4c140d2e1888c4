// Recurrence: the walk over the chunks of a sequence, one block for every (sequence, value head,
// tile of V). A producer warpgroup brings tiles by the copy engine and makes the fp16 keys; each
// consumer warpgroup keeps S^T and M^T of 64 value channels by kWidth key channels in fp32
// accumulators for the whole sequence and feeds them back, rounded slice by slice, as the register
// A operand. Per chunk (transposed, so that every product has 64 rows; R' of hopper_saved.h):
//
//     X:  XS^T = S^T K^T, XM^T = M^T K^T              state rounded to the inputs' type
//         W^T = V^T - e XS^T + c XM^T                 fp32, to fp16
//     R:  R'^T = W^T T^T                              to fp16
//     Q:  O^T = a (S^T Q^T) - b (M^T Q^T) + R'^T PGD^T
//     U:  S^T = a_C S^T - b_C M^T + (g R')^T K,  M^T = m M^T - (n R')^T K        fp16 keys
//
// No block barrier lies between reading the states and updating them. With K = 256 two warpgroups
// hold half of the key channels each and exchange partial sums of W and O in shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
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

struct RecurrenceParams {
  const Chunk* chunks;
  const int32_t* begin;  // chunks of a sequence, chunk_table.h
  const char* records;
  const float* initial_S;  // [N, HV, V, K], null: zeros
  const float* initial_M;
  float* final_S;  // null: not wanted
  float* final_M;
  void* o;  // [tokens, HV, V]
  int HV;
  int group;  // value heads a query/key head
  int V;
};

/// A tile of 64 columns of V is the work of kSplit warpgroups; a block has kTiles of them.
template <class Element, int kKeyChannels, int kValueTiles>
struct RecurrenceTraits {
  using T = Element;
  static constexpr int K = kKeyChannels;
  static constexpr int kTiles = kValueTiles;
  static constexpr int kSplit = K == 256 ? 2 : 1;
  static constexpr int kWidth = K / kSplit;  // key channels of a warpgroup
  static constexpr int kConsumers = kSplit * kTiles;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static constexpr int kBoxes = K / 64;
  static constexpr int kStagesQ = K == 256 ? 1 : 2;
  static constexpr int kStagesK = 2;
  static constexpr int kStagesKeys16 = K == 256 ? 1 : 2;
  static constexpr int kStagesRecord = 2;
  static constexpr int kStagesV = 2;
  static constexpr int kStagesO = K == 256 ? 1 : 2;
  static_assert(kSplit == 1 || kTiles == 1);
  static_assert(K == 64 || K == 128 || K == 256);
};

inline constexpr int kRecordStage = 19 * 1024;
static_assert(kRecordStage >= kRecordBytes);

/// A ring of stages: `full` ends when data is there, `empty` when everyone has read it.
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
  /// Of use number i.
  __device__ __forceinline__ static int stage(int i) { return i % kStages; }
  __device__ __forceinline__ void wait_full(int i) {
    ptx::mbarrier_wait(&full[i % kStages], (i / kStages) & 1);
  }
  __device__ __forceinline__ void wait_empty(int i) {
    ptx::mbarrier_wait(&empty[i % kStages], ((i / kStages) & 1) ^ 1);
  }
  __device__ __forceinline__ void release(int i) { ptx::mbarrier_arrive(&empty[i % kStages]); }
};

template <class R>
struct RecurrenceShared {
  alignas(1024) char q[R::kStagesQ][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char k[R::kStagesK][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char keys16[R::kStagesKeys16][R::kBoxes][ptx::kBoxBytes];
  alignas(1024) char record[R::kStagesRecord][kRecordStage];
  alignas(1024) char v[R::kStagesV][R::kTiles][ptx::kBoxBytes];
  alignas(1024) char o[R::kTiles][R::kStagesO][ptx::kBoxBytes];
  alignas(1024) float4 exchange[R::kSplit == 2 ? 2 : 1][R::kSplit == 2 ? 8 * 128 : 1];
  Ring<R::kStagesQ> q_ring;
  Ring<R::kStagesK> k_ring;
  Ring<R::kStagesKeys16> keys16_ring;
  Ring<R::kStagesRecord> record_ring;
  Ring<R::kStagesV> v_ring;

  __device__ const ChunkVectors& vectors(int stage) const {
    return *reinterpret_cast<const ChunkVectors*>(record[stage] + kRecordVectors);
  }
};

inline constexpr int kConverterWarps = 3;

/// What a block works on.
struct RecurrenceWork {
  int sequence;
  int head;
  int value;  // first channel of V
  int begin;  // chunk table entries
  int chunks;
};

/// Warp 0 of the producer warpgroup, one lane.
template <class R>
__device__ __forceinline__ void produce(RecurrenceShared<R>& shared, const CUtensorMap& q_map,
                                        const CUtensorMap& k_map, const CUtensorMap& v_map,
                                        const RecurrenceParams& params,
                                        const RecurrenceWork& work) {
  const int key_head = work.head / params.group;
  for (int i = 0; i < work.chunks; ++i) {
    const int64_t entry = work.begin + i;
    const int token = static_cast<int>(params.chunks[entry].token);
    {
      auto& ring = shared.k_ring;
      const int stage = ring.stage(i);
      ring.wait_empty(i);
      ptx::mbarrier_arrive_expect(&ring.full[stage], R::kBoxes * ptx::kBoxBytes);
#pragma unroll
      for (int box = 0; box < R::kBoxes; ++box) {
        ptx::tma_load(shared.k[stage][box], &k_map, &ring.full[stage], box * 64, key_head, token);
      }
    }
    {
      auto& ring = shared.record_ring;
      const int stage = ring.stage(i);
      ring.wait_empty(i);
      ptx::mbarrier_arrive_expect(&ring.full[stage], kRecordBytes);
      ptx::bulk_load(shared.record[stage],
                     params.records + (entry * params.HV + work.head) * kRecordBytes, kRecordBytes,
                     &ring.full[stage]);
    }
    {
      auto& ring = shared.v_ring;
      const int stage = ring.stage(i);
      ring.wait_empty(i);
      ptx::mbarrier_arrive_expect(&ring.full[stage], R::kTiles * ptx::kBoxBytes);
#pragma unroll
      for (int tile = 0; tile < R::kTiles; ++tile) {
        ptx::tma_load(shared.v[stage][tile], &v_map, &ring.full[stage], work.value + tile * 64,
                      work.head, token);
      }
    }
    {
      auto& ring = shared.q_ring;
      const int stage = ring.stage(i);
      ring.wait_empty(i);
      ptx::mbarrier_arrive_expect(&ring.full[stage], R::kBoxes * ptx::kBoxBytes);
#pragma unroll
      for (int box = 0; box < R::kBoxes; ++box) {
        ptx::tma_load(shared.q[stage][box], &q_map, &ring.full[stage], box * 64, key_head, token);
      }
    }
  }
}

/// The other warps of the producer warpgroup: keys16 = fp16(rk K).
template <class R>
__device__ __forceinline__ void convert_keys(RecurrenceShared<R>& shared,
                                             const RecurrenceWork& work, int thread) {
  for (int i = 0; i < work.chunks; ++i) {
    shared.record_ring.wait_full(i);
    shared.k_ring.wait_full(i);
    shared.keys16_ring.wait_empty(i);
    const int out = shared.keys16_ring.stage(i);
    parts::convert_rows<typename R::T, kConverterWarps * 32>(
        ptx::shared_address(shared.keys16[out]),
        ptx::shared_address(shared.k[shared.k_ring.stage(i)]), R::kBoxes * ptx::kBoxBytes, kChunk,
        shared.vectors(shared.record_ring.stage(i)).rk, thread);
    ptx::fence_async_shared();
    __syncwarp();
    if (thread % 32 == 0) {
      ptx::mbarrier_arrive(&shared.keys16_ring.full[out]);
      shared.k_ring.release(i);
      shared.record_ring.release(i);
    }
  }
}

/// One consumer warpgroup.
template <class R>
struct Consumer {
  using T = typename R::T;
  static constexpr int kSlices = R::kWidth / 16;

  RecurrenceShared<R>& shared;
  const RecurrenceParams& params;
  const RecurrenceWork& work;
  int thread;  // 0 .. 127
  int warp;
  int lane;
  int half;  // of the key channels
  int tile;  // of V

  float S[R::kWidth / 2];
  float M[R::kWidth / 2];

  __device__ __forceinline__ int64_t state_offset(int i) const {
    const int row = work.value + tile * 64 + 16 * warp + lane / 4 + 8 * i;
    return ((int64_t{work.sequence} * params.HV + work.head) * params.V + row) * R::K +
           half * R::kWidth + 2 * (lane % 4);
  }

  __device__ __forceinline__ void load_state(float (&X)[R::kWidth / 2], const float* from) {
    if (from == nullptr) {
#pragma unroll
      for (float& x : X) {
        x = 0;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float* row = from + state_offset(i);
#pragma unroll
      for (int j = 0; j < R::kWidth / 8; ++j) {
        const float2 pair = *reinterpret_cast<const float2*>(row + 8 * j);
        X[4 * j + 2 * i] = pair.x;
        X[4 * j + 2 * i + 1] = pair.y;
      }
    }
  }

  __device__ __forceinline__ void store_state(const float (&X)[R::kWidth / 2], float* to) {
    if (to == nullptr) {
      return;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* row = to + state_offset(i);
#pragma unroll
      for (int j = 0; j < R::kWidth / 8; ++j) {
        *reinterpret_cast<float2*>(row + 8 * j) = {X[4 * j + 2 * i], X[4 * j + 2 * i + 1]};
      }
    }
  }

  /// Slice of 16 key channels of a K-major operand [64 tokens, K].
  __device__ __forceinline__ uint64_t slice_of(const char (&tile_boxes)[R::kBoxes][ptx::kBoxBytes],
                                               int slice) const {
    return ptx::descriptor_k(ptx::shared_address(tile_boxes[half * (R::kWidth / 64) + slice / 4]) +
                             static_cast<uint32_t>(slice % 4 * 32));
  }

  /// The states' slice of 16 key channels as A operand; kAgain: see ptx::pack_again.
  template <bool kAgain>
  __device__ __forceinline__ void state_fragment(uint32_t (&a)[4], const float (&X)[R::kWidth / 2],
                                                 int slice) {
    if constexpr (kAgain) {
      parts::fragment_again<T>(a, X, slice);
    } else {
      parts::fragment<T>(a, X, slice);
    }
  }
};

// Named barriers of the split: W exchanged; region of half 0, 1 read; O exchanged; O staged.
// Without the split tile_barrier(0) of each tile (ids 1, 2).
inline constexpr int kBarrierW = 1;
inline constexpr int kBarrierRead = 2;
inline constexpr int kBarrierO = 4;
inline constexpr int kBarrierStaged = 5;

/// o of the chunk from its box in shared memory, which every thread has written and fenced.
template <class R>
__device__ __forceinline__ void write_output(const CUtensorMap& o_map,
                                             const RecurrenceParams& params,
                                             const RecurrenceWork& work, const Chunk& chunk,
                                             const char* box, int value, int thread, int threads) {
  if (chunk.length == kChunk) {
    if (thread == 0) {
      ptx::tma_store(&o_map, box, value, work.head, static_cast<int>(chunk.token));
      ptx::store_commit();
    }
    return;
  }
  auto* o = static_cast<typename R::T*>(params.o);  // a short chunk: its own rows only
  o += (chunk.token * params.HV + work.head) * params.V + value + thread % 8 * 8;
#pragma unroll 1
  for (int row = thread / 8; row < chunk.length; row += threads / 8) {
    *reinterpret_cast<uint4*>(o + int64_t{row} * params.HV * params.V) =
        *reinterpret_cast<const uint4*>(box + parts::box_offset(row, thread % 8 * 8));
  }
}

template <class R>
__device__ __forceinline__ void consume(RecurrenceShared<R>& shared, const CUtensorMap& o_map,
                                        const RecurrenceParams& params, const RecurrenceWork& work,
                                        int consumer, int thread) {
  using T = typename R::T;
  using ptx::Major;
  Consumer<R> self{shared,
                   params,
                   work,
                   thread,
                   thread / 32,
                   thread % 32,
                   R::kSplit == 2 ? consumer : 0,
                   R::kSplit == 2 ? 0 : consumer};
  float(&S)[R::kWidth / 2] = self.S;
  float(&M)[R::kWidth / 2] = self.M;
  const int warp = self.warp;
  const int lane = self.lane;
  const int half = self.half;
  const int tile = self.tile;
  const bool releases = lane == 0;
  const int value = work.value + tile * 64;
  const int column = 2 * (lane % 4);
  const uint32_t lane_offset = parts::transposed_lane(0, warp, lane);
  self.load_state(S, params.initial_S);
  self.load_state(M, params.initial_M);

  for (int i = 0; i < work.chunks; ++i) {
    const int record = shared.record_ring.stage(i);
    const ChunkVectors& vectors = shared.vectors(record);

    // X: XS^T = S^T K^T, XM^T = M^T K^T.
    float XS[32];
    float XM[32];
    shared.k_ring.wait_full(i);
    const auto& keys = shared.k[shared.k_ring.stage(i)];
#pragma unroll
    for (int slice = 0; slice < Consumer<R>::kSlices; ++slice) {
      uint32_t a[4];
      uint32_t b[4];
      if (slice > 0) {
        ptx::wgmma_wait<1>();
      }
      self.template state_fragment<false>(a, S, slice);
      self.template state_fragment<false>(b, M, slice);
      ptx::wgmma_fence();
      ptx::wgmma_ra<T, Major::kK>(XS, a, self.slice_of(keys, slice), slice != 0);
      ptx::wgmma_ra<T, Major::kK>(XM, b, self.slice_of(keys, slice), slice != 0);
      ptx::wgmma_commit();
    }
    shared.record_ring.wait_full(i);
    shared.v_ring.wait_full(i);
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(XS);
    ptx::wgmma_touch(XM);
    if (releases) {
      shared.k_ring.release(i);
    }

    // W^T = V^T - e XS^T + c XM^T
    uint32_t W[4][4];
    const uint32_t v_address =
        ptx::shared_address(shared.v[shared.v_ring.stage(i)][tile]) + lane_offset;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      uint32_t v[4];
      if (R::kSplit == 1 || half == 0) {
        ptx::ldmatrix_trans(v, v_address + j * 1024);
      } else {
        v[0] = v[1] = v[2] = v[3] = 0;
      }
#pragma unroll
      for (int jj = 0; jj < 2; ++jj) {
        const int at = 4 * (j + jj);
        const float2 e = parts::column_pair(vectors.e + column, j + jj);
        const float2 c = parts::column_pair(vectors.c + column, j + jj);
        const float2 v0 = ptx::unpack<T>(v[2 * jj]);
        const float2 v1 = ptx::unpack<T>(v[2 * jj + 1]);
        XS[at] = fmaf(c.x, XM[at], fmaf(-e.x, XS[at], v0.x));
        XS[at + 1] = fmaf(c.y, XM[at + 1], fmaf(-e.y, XS[at + 1], v0.y));
        XS[at + 2] = fmaf(c.x, XM[at + 2], fmaf(-e.x, XS[at + 2], v1.x));
        XS[at + 3] = fmaf(c.y, XM[at + 3], fmaf(-e.y, XS[at + 3], v1.y));
      }
      if constexpr (R::kSplit == 1) {
        parts::fragment<__half>(W[j / 2], XS, j / 2);
      }
    }
    if constexpr (R::kSplit == 2) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        shared.exchange[half][j * 128 + thread] = {XS[4 * j], XS[4 * j + 1], XS[4 * j + 2],
                                                   XS[4 * j + 3]};
      }
      if (half == 0 && thread == 0) {
        ptx::store_wait_read<0>();  // the output of the chunk before has left its box
      }
      ptx::named_barrier(kBarrierW, 256);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 other = shared.exchange[1 - half][j * 128 + thread];
        W[j / 2][j % 2 * 2] = ptx::pack_half(XS[4 * j] + other.x, XS[4 * j + 1] + other.y);
        W[j / 2][j % 2 * 2 + 1] = ptx::pack_half(XS[4 * j + 2] + other.z, XS[4 * j + 3] + other.w);
      }
    }
    if constexpr (R::kSplit == 2) {
      ptx::named_barrier_arrive(kBarrierRead + 1 - half, 256);
    }

    // R: R'^T = W^T T^T
    float Rt[32];
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::wgmma_ra<__half, Major::kK>(
          Rt, W[slice],
          ptx::descriptor_k(ptx::shared_address(shared.record[record] + kRecordT) + slice * 32),
          slice != 0);
    }
    ptx::wgmma_commit();

    // Q: S^T Q^T, then M^T Q^T; R' is rounded meanwhile.
    float OS[32];
    float OM[32];
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(Rt);
    parts::store_transposed<__half>(v_address, Rt);  // parked in the box of v: this warp's part of
    __syncwarp();                                    // it, read and written by this warp alone
    shared.q_ring.wait_full(i);
    const auto& queries = shared.q[shared.q_ring.stage(i)];
#pragma unroll
    for (int slice = 0; slice < Consumer<R>::kSlices; ++slice) {
      uint32_t a[4];
      ptx::wgmma_wait<1>();
      self.template state_fragment<true>(a, S, slice);
      ptx::wgmma_fence();
      ptx::wgmma_ra<T, Major::kK>(OS, a, self.slice_of(queries, slice), slice != 0);
      ptx::wgmma_commit();
    }
#pragma unroll
    for (int slice = 0; slice < Consumer<R>::kSlices; ++slice) {
      uint32_t a[4];
      ptx::wgmma_wait<1>();
      self.template state_fragment<true>(a, M, slice);
      ptx::wgmma_fence();
      ptx::wgmma_ra<T, Major::kK>(OM, a, self.slice_of(queries, slice), slice != 0);
      ptx::wgmma_commit();
    }

    // a_C S - b_C M and m M, in place: the products in flight hold rounded copies.
    const float a_end = vectors.a_end;
    const float b_end = vectors.b_end;
    const float m_end = vectors.m_end;
#pragma unroll
    for (int at = 0; at < R::kWidth / 2; ++at) {
      S[at] = fmaf(-b_end, M[at], a_end * S[at]);
      M[at] *= m_end;
    }

    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(OS);
    ptx::wgmma_touch(OM);
    if (releases) {
      shared.q_ring.release(i);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {  // O^T = a OS^T - b OM^T
      const float2 a = parts::column_pair(vectors.a + column, j);
      const float2 b = parts::column_pair(vectors.b + column, j);
#pragma unroll
      for (int at = 4 * j; at < 4 * j + 4; at += 2) {
        OS[at] = fmaf(-b.x, OM[at], a.x * OS[at]);
        OS[at + 1] = fmaf(-b.y, OM[at + 1], a.y * OS[at + 1]);
      }
    }

    uint32_t R16[4][4];
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::ldmatrix_trans(R16[slice], v_address + slice * 2048);
    }
    ptx::fence_async_shared();
    __syncwarp();
    if (releases) {
      shared.v_ring.release(i);
    }

    // U: the updates, with the output's last product before them.
    float own[16];  // split: this half's 32 tokens of O
    const uint32_t PGD = ptx::shared_address(shared.record[record] + kRecordPGD);
    if constexpr (R::kSplit == 2) {
      ptx::named_barrier(kBarrierRead + half, 256);
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
      ptx::named_barrier(kBarrierO, 256);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 other = shared.exchange[1 - half][j * 128 + thread];
        own[4 * j] += other.x;
        own[4 * j + 1] += other.y;
        own[4 * j + 2] += other.z;
        own[4 * j + 3] += other.w;
      }
      ptx::wgmma_fence();
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        ptx::wgmma_ra<__half, Major::kK>(own, R16[slice],
                                         ptx::descriptor_k(PGD + half * (32 * 128) + slice * 32));
      }
    } else {
      ptx::wgmma_fence();
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        ptx::wgmma_ra<__half, Major::kK>(OS, R16[slice], ptx::descriptor_k(PGD + slice * 32));
      }
    }
    ptx::wgmma_commit();

    shared.keys16_ring.wait_full(i);
    const uint32_t keys16 =
        ptx::shared_address(shared.keys16[shared.keys16_ring.stage(i)][half * (R::kWidth / 64)]);
    uint32_t U[4][4];
    parts::scaled_fragments(U, R16, vectors.g + column, 1.0f);
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::wgmma_ra<__half, Major::kMN>(S, U[slice],
                                        ptx::descriptor_mn(keys16 + slice * 2048, ptx::kBoxBytes));
    }
    ptx::wgmma_commit();
    uint32_t N[4][4];
    parts::scaled_fragments(N, R16, vectors.n + column, -1.0f);
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::wgmma_ra<__half, Major::kMN>(M, N[slice],
                                        ptx::descriptor_mn(keys16 + slice * 2048, ptx::kBoxBytes));
    }
    ptx::wgmma_commit();

    // The output, under the updates.
    ptx::wgmma_wait<2>();
    const Chunk chunk = params.chunks[work.begin + i];
    if constexpr (R::kSplit == 2) {
      ptx::wgmma_touch(own);
      char* box = shared.o[0][0];
      const uint32_t address = ptx::shared_address(box) + lane_offset + half * 4096;
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        ptx::stmatrix_trans(address + j * 1024, ptx::pack<T>(own[4 * j], own[4 * j + 1]),
                            ptx::pack<T>(own[4 * j + 2], own[4 * j + 3]),
                            ptx::pack<T>(own[4 * j + 4], own[4 * j + 5]),
                            ptx::pack<T>(own[4 * j + 6], own[4 * j + 7]));
      }
      ptx::fence_async_shared();
      ptx::named_barrier(kBarrierStaged, 256);
      write_output<R>(o_map, params, work, chunk, box, value, half * 128 + thread, 256);
      // A short chunk is the last one: nothing writes the box again before it is read.
    } else {
      ptx::wgmma_touch(OS);
      char* box = shared.o[tile][i % R::kStagesO];
      parts::store_transposed<T>(ptx::shared_address(box) + lane_offset, OS);
      ptx::fence_async_shared();
      if (thread == 0) {
        ptx::store_wait_read<0>();  // the other box is free once everyone is past the barrier
      }
      ptx::named_barrier(1 + tile, 128);
      write_output<R>(o_map, params, work, chunk, box, value, thread, 128);
    }

    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(S);
    ptx::wgmma_touch(M);
    if (releases) {
      shared.keys16_ring.release(i);
      shared.record_ring.release(i);
    }
  }
  self.store_state(S, params.final_S);
  self.store_state(M, params.final_M);
  if (thread == 0) {
    ptx::store_wait<0>();
  }
}

template <class R>
__global__ void __launch_bounds__(R::kThreads, 1)
    recurrence(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
               const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap o_map,
               const __grid_constant__ RecurrenceParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<RecurrenceShared<R>*>(memory);
  const int thread = static_cast<int>(threadIdx.x);
  // The same in all lanes, which this tells the compiler: addresses made of it stay uniform.
  const int warpgroup = __shfl_sync(0xFFFFFFFF, thread / 128, 0);
  if (thread == 0) {
    constexpr int kWarps = 4 * R::kConsumers;
    shared.q_ring.init(1, kWarps);
    shared.k_ring.init(1, kWarps + kConverterWarps);
    shared.keys16_ring.init(kConverterWarps, kWarps);
    shared.record_ring.init(1, kWarps + kConverterWarps);
    shared.v_ring.init(1, kWarps);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  RecurrenceWork work;
  {
    const int tiles = params.V / (64 * R::kTiles);
    int block = static_cast<int>(blockIdx.x);
    work.value = block % tiles * (64 * R::kTiles);
    block /= tiles;
    work.head = block % params.HV;
    work.sequence = block / params.HV;
    work.begin = params.begin[work.sequence];
    work.chunks = params.begin[work.sequence + 1] - work.begin;
  }
  if (warpgroup == R::kConsumers) {
    if constexpr (R::kConsumers == 2) {
      ptx::registers_decrease<24>();
    }
    const int producer_thread = thread - 128 * R::kConsumers;
    if (producer_thread == 0) {
      produce<R>(shared, q_map, k_map, v_map, params, work);
    } else if (producer_thread >= 32) {
      convert_keys<R>(shared, work, producer_thread - 32);
    }
  } else {
    if constexpr (R::kConsumers == 2) {
      ptx::registers_increase<240>();
    }
    consume<R>(shared, o_map, params, work, warpgroup, thread % 128);
  }
}

}  // namespace mdn::kernels::cuda::hopper
