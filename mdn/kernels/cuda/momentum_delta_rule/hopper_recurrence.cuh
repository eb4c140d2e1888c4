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
  static constexpr int kStagesK = K == 256 ? 1 : 2;
  static constexpr int kStagesKeys16 = K == 256 ? 1 : 2;
  static constexpr int kStagesRecord = 2;
  static constexpr int kStagesV = K == 256 ? 1 : 2;
  // A consumer has 255 registers alone in its block, 240 beside another; kWide is what fits the
  // former only: V - e XS begins under XM, and groups of Q of two slices instead of one.
  static constexpr bool kWide = kConsumers == 1;
  static constexpr int kGroupQ = kWide ? 2 : 1;
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
  alignas(1024) char keys16[R::kStagesKeys16][2][R::kBoxes][ptx::kBoxBytes];  // for S, for M
  alignas(1024) char record[R::kStagesRecord][kRecordStage];
  alignas(1024) char v[R::kStagesV][R::kTiles][ptx::kBoxBytes];
  alignas(1024) char park[R::kConsumers][ptx::kBoxBytes];  // R', then O: a warp's own part of a box
  alignas(1024) float4 exchange[R::kSplit == 2 ? 2 : 1][R::kSplit == 2 ? 8 * 128 : 1];
  float factors[2][kChunk];  // of the converters
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
inline constexpr int kBarrierConverters = 8;  // a named barrier

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

/// The other warps of the producer warpgroup: keys16 = fp16(g rk K) and fp16(-n rk K), so that R'
/// is the A operand of every product it enters.
template <class R>
__device__ __forceinline__ void convert_keys(RecurrenceShared<R>& shared,
                                             const RecurrenceWork& work, int thread) {
  for (int i = 0; i < work.chunks; ++i) {
    shared.record_ring.wait_full(i);
    shared.k_ring.wait_full(i);
    shared.keys16_ring.wait_empty(i);
    for (int t = thread; t < kChunk; t += kConverterWarps * 32) {
      const ChunkVectors& vectors = shared.vectors(shared.record_ring.stage(i));
      shared.factors[0][t] = vectors.g[t] * vectors.rk[t];
      shared.factors[1][t] = -vectors.n[t] * vectors.rk[t];
    }
    ptx::named_barrier(kBarrierConverters, kConverterWarps * 32);
    const int out = shared.keys16_ring.stage(i);
    parts::convert_rows_twice<typename R::T, kConverterWarps * 32>(
        ptx::shared_address(shared.keys16[out][0]), ptx::shared_address(shared.keys16[out][1]),
        ptx::shared_address(shared.k[shared.k_ring.stage(i)]), R::kBoxes * ptx::kBoxBytes, kChunk,
        shared.factors[0], shared.factors[1], thread);
    ptx::fence_async_shared();
    ptx::named_barrier(kBarrierConverters, kConverterWarps * 32);  // the factors are free again
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
  static constexpr int kPairs = R::kWidth / 32;  // of slices of 16 key channels

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

  /// out (+)= kCount slices of 16 key channels, from `slice` on, of X^T times the tokens of
  /// `boxes`: one group. kAgain: see ptx::pack_again.
  template <bool kAgain, int kCount>
  __device__ __forceinline__ void state_products(float (&out)[32], const float (&X)[R::kWidth / 2],
                                                 const char (&boxes)[R::kBoxes][ptx::kBoxBytes],
                                                 int slice) {
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
      ptx::wgmma_ra<T, ptx::Major::kK>(out, a[i], slice_of(boxes, slice + i), slice + i != 0);
    }
    ptx::wgmma_commit();
  }
};

// Named barriers of the split: W exchanged; then for each half: its region read by the other half
// (W), written again (O), read again.
inline constexpr int kBarrierW = 1;
inline constexpr int kBarrierReadW = 2;
inline constexpr int kBarrierWrittenO = 4;
inline constexpr int kBarrierReadO = 6;

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

/// Writes `first` .. first + kTokens - 1 of the chunk's tokens of O^T, 16 value channels of this
/// warp: turned in the warp's own part of a box, then whole 32-byte sectors to global memory.
template <class R, int kTokens>
__device__ __forceinline__ void store_output(const RecurrenceParams& params,
                                             const RecurrenceWork& work, const Chunk& chunk,
                                             const char* box, const float (&O)[kTokens / 2],
                                             int value, int warp, int lane, int first) {
  using T = typename R::T;
  const uint32_t address = ptx::shared_address(box);
  __syncwarp();  // what was parked here has been read
#pragma unroll
  for (int j = 0; j < kTokens / 8; j += 2) {
    ptx::stmatrix_trans(
        parts::transposed_lane(address, warp, lane) + j * 1024,
        ptx::pack<T>(O[4 * j], O[4 * j + 1]), ptx::pack<T>(O[4 * j + 2], O[4 * j + 3]),
        ptx::pack<T>(O[4 * j + 4], O[4 * j + 5]), ptx::pack<T>(O[4 * j + 6], O[4 * j + 7]));
  }
  __syncwarp();
  const int row = lane / 2;
  const int unit = 2 * warp + lane % 2;
  const int64_t stride = int64_t{params.HV} * params.V;
  auto* o = static_cast<T*>(params.o) + (chunk.token + first + row) * stride +
            int64_t{work.head} * params.V + value + unit * 8;
#pragma unroll
  for (int at = 0; at < kTokens; at += 16) {
    uint4 words;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                 : "r"(address + parts::box_offset(row, unit * 8) + at * 128));
    if (first + at + row < chunk.length) {
      *reinterpret_cast<uint4*>(o + at * stride) = words;
    }
  }
}

template <class R>
__device__ __forceinline__ void consume(RecurrenceShared<R>& shared, const RecurrenceParams& params,
                                        const RecurrenceWork& work, int consumer, int thread) {
  using T = typename R::T;
  using ptx::Major;
  constexpr int kPairs = Consumer<R>::kPairs;
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
  const uint32_t park = ptx::shared_address(shared.park[consumer]) + lane_offset;
  self.load_state(S, params.initial_S);
  self.load_state(M, params.initial_M);

  for (int i = 0; i < work.chunks; ++i) {
    const int record = shared.record_ring.stage(i);
    const ChunkVectors& vectors = shared.vectors(record);

    // X: XS^T = S^T K^T, then XM^T = M^T K^T; under the latter V^T - e XS^T begins.
    float XS[32];
    float XM[32];
    shared.k_ring.wait_full(i);
    const auto& keys = shared.k[shared.k_ring.stage(i)];
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      if (pair > 0) {  // nothing is in flight before
        ptx::wgmma_wait<1>();
      }
      self.template state_products<false, 2>(XS, S, keys, 2 * pair);
    }
    shared.record_ring.wait_full(i);
    shared.v_ring.wait_full(i);
    const uint32_t v_address =
        ptx::shared_address(shared.v[shared.v_ring.stage(i)][tile]) + lane_offset;
    float Wf[32];
    const auto begin_W = [&](int j) {  // for 16 tokens
      uint32_t v[4] = {0, 0, 0, 0};
      if (R::kSplit == 1 || half == 0) {
        ptx::ldmatrix_trans(v, v_address + j * 2048);
      }
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const float2 e = parts::column_pair(vectors.e + column, 2 * j + word / 2);
        const float2 pair = ptx::unpack<T>(v[word]);
        Wf[8 * j + 2 * word] = fmaf(-e.x, XS[8 * j + 2 * word], pair.x);
        Wf[8 * j + 2 * word + 1] = fmaf(-e.y, XS[8 * j + 2 * word + 1], pair.y);
      }
    };
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      ptx::wgmma_wait<1>();
      self.template state_products<false, 2>(XM, M, keys, 2 * pair);
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
    ptx::wgmma_touch(XM);
#pragma unroll
    for (int j = 0; !R::kWide && j < 4; ++j) {
      begin_W(j);
    }
    if (releases) {
      shared.k_ring.release(i);
    }

    // W^T = V^T - e XS^T + c XM^T
    uint32_t W[4][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 c = parts::column_pair(vectors.c + column, j);
#pragma unroll
      for (int at = 4 * j; at < 4 * j + 4; at += 2) {
        Wf[at] = fmaf(c.x, XM[at], Wf[at]);
        Wf[at + 1] = fmaf(c.y, XM[at + 1], Wf[at + 1]);
      }
    }
    if constexpr (R::kSplit == 1) {
#pragma unroll
      for (int slice = 0; slice < 4; ++slice) {
        parts::fragment<__half>(W[slice], Wf, slice);
      }
    } else {
      if (i > 0) {
        ptx::named_barrier(kBarrierReadO + half, 256);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        shared.exchange[half][j * 128 + thread] = {Wf[4 * j], Wf[4 * j + 1], Wf[4 * j + 2],
                                                   Wf[4 * j + 3]};
      }
      ptx::named_barrier(kBarrierW, 256);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float4 other = shared.exchange[1 - half][j * 128 + thread];
        W[j / 2][j % 2 * 2] = ptx::pack_half(Wf[4 * j] + other.x, Wf[4 * j + 1] + other.y);
        W[j / 2][j % 2 * 2 + 1] = ptx::pack_half(Wf[4 * j + 2] + other.z, Wf[4 * j + 3] + other.w);
      }
      ptx::named_barrier_arrive(kBarrierReadW + 1 - half, 256);
    }

    if (releases) {
      shared.v_ring.release(i);
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

    // Q: S^T Q^T, then M^T Q^T. Under the former R' is rounded and parked in shared memory; under
    // the latter the states are scaled in place: the products in flight hold rounded copies.
    float OS[32];
    float OM[32];
    shared.q_ring.wait_full(i);
    const auto& queries = shared.q[shared.q_ring.stage(i)];
    constexpr int kGroup = R::kGroupQ;
    constexpr int kGroups = R::kWidth / 16 / kGroup;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      ptx::wgmma_wait<1>();
      self.template state_products<true, kGroup>(OS, S, queries, kGroup * group);
      if (group == 1) {
        ptx::wgmma_touch(Rt);
        parts::store_transposed<__half>(park, Rt);
        __syncwarp();
      }
    }
    const float a_end = vectors.a_end;
    const float b_end = vectors.b_end;
    const float m_end = vectors.m_end;
    float O[32];  // O^T = a OS^T - b OM^T + R'^T PGD^T
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      ptx::wgmma_wait<1>();
      self.template state_products<true, kGroup>(OM, M, queries, kGroup * group);
      if (group == 1) {
        ptx::wgmma_touch(OS);
      }
      if (group >= 1 && group <= 4) {
        scale_columns(O, OS, vectors.a + column, group - 1);
      }
#pragma unroll
      for (int at = 8 * kGroup * group; at < 8 * kGroup * (group + 1);
           ++at) {  // a_C S - b_C M, m M
        S[at] = fmaf(-b_end, M[at], a_end * S[at]);
        M[at] *= m_end;
      }
    }
#pragma unroll
    for (int j = kGroups - 1; j < 4; ++j) {
      scale_columns(O, OS, vectors.a + column, j);
    }
    const Chunk chunk = params.chunks[work.begin + i];
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(OM);
    if (releases) {
      shared.q_ring.release(i);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 b = parts::column_pair(vectors.b + column, j);
#pragma unroll
      for (int at = 4 * j; at < 4 * j + 4; at += 2) {
        O[at] = fmaf(-b.x, OM[at], O[at]);
        O[at + 1] = fmaf(-b.y, OM[at + 1], O[at + 1]);
      }
    }

    // U: the output's last product, then S^T += (g R')^T K, M^T -= (n R')^T K.
    const uint32_t PGD = ptx::shared_address(shared.record[record] + kRecordPGD);
    shared.keys16_ring.wait_full(i);
    const auto& keys16 = shared.keys16[shared.keys16_ring.stage(i)];
    const uint32_t keys_S = ptx::shared_address(keys16[0][half * (R::kWidth / 64)]);
    const uint32_t keys_M = ptx::shared_address(keys16[1][half * (R::kWidth / 64)]);
    uint32_t R16[4][4];
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::ldmatrix_trans(R16[slice], park + slice * 2048);
    }
    float own[16];  // split: this half's 32 tokens of O
    if constexpr (R::kSplit == 2) {
      ptx::named_barrier(kBarrierReadW + half, 256);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float other[4];
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          own[4 * j + x] = half == 0 ? O[4 * j + x] : O[16 + 4 * j + x];
          other[x] = half == 0 ? O[16 + 4 * j + x] : O[4 * j + x];
        }
        shared.exchange[half][j * 128 + thread] = {other[0], other[1], other[2], other[3]};
      }
      ptx::named_barrier_arrive(kBarrierWrittenO + half, 256);  // written; read before the output
    }
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      const uint64_t b = ptx::descriptor_k(PGD + half * (32 * 128) + slice * 32);
      if constexpr (R::kSplit == 2) {
        ptx::wgmma_ra<__half, Major::kK>(own, R16[slice], b);
      } else {
        ptx::wgmma_ra<__half, Major::kK>(O, R16[slice], b);
      }
    }
    ptx::wgmma_commit();
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::wgmma_ra<__half, Major::kMN>(S, R16[slice],
                                        ptx::descriptor_mn(keys_S + slice * 2048, ptx::kBoxBytes));
    }
    ptx::wgmma_commit();
    ptx::wgmma_fence();
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      ptx::wgmma_ra<__half, Major::kMN>(M, R16[slice],
                                        ptx::descriptor_mn(keys_M + slice * 2048, ptx::kBoxBytes));
    }
    ptx::wgmma_commit();

    // The output, under the updates.
    ptx::wgmma_wait<2>();
    if constexpr (R::kSplit == 2) {
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
      if (i + 1 < work.chunks) {
        ptx::named_barrier_arrive(kBarrierReadO + 1 - half, 256);
      }
      store_output<R, 32>(params, work, chunk, shared.park[consumer], sum, value, warp, lane,
                          32 * half);
    } else {
      ptx::wgmma_touch(O);
      store_output<R, 64>(params, work, chunk, shared.park[consumer], O, value, warp, lane, 0);
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
      ptx::wait_for_dependencies();  // the records: written by the kernel before
      produce<R>(shared, q_map, k_map, v_map, params, work);
    } else if (producer_thread >= 32) {
      convert_keys<R>(shared, work, producer_thread - 32);
    }
  } else {
    if constexpr (R::kConsumers == 2) {
      ptx::registers_increase<240>();
    }
    consume<R>(shared, params, work, warpgroup, thread % 128);
  }
}

}  // namespace mdn::kernels::cuda::hopper
