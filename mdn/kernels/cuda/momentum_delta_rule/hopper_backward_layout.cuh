// What the three kernels of the Hopper backward pass hand to each other in the workspace, and the
// small pieces that they share.
//
// Every tile is a run of boxes of 64 x 64 elements of E (bf16 or fp16, the dtype of the inputs),
// 8192 bytes, swizzled as wgmma reads them (ptx/descriptor.cuh), so that plain bulk copies move
// them. For every chunk table entry and value head of the group in work:
//
//     S, M    boxes [V / 64][K / 64], rows value channels, columns key channels: the states that
//             the chunk starts with, by the states kernel
//     dS, dM  the same: the gradients of the states that the chunk ends with,
//             by the chain kernel
//     R       boxes [V / 64], rows tokens, columns value channels,
//             by the states kernel
//
// Without momentum M and dM are missing everywhere; the kernels' kMomentum says so.
//
// Names and formulas: docs/math/momentum_delta_rule.md.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.cuh"
#include "mdn/kernels/cuda/parts/fragment.cuh"
#include "mdn/kernels/cuda/parts/tile.cuh"
#include "mdn/kernels/cuda/ptx/descriptor.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/registers.cuh"
#include "mdn/kernels/cuda/ptx/tma.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::backward_pass {

inline constexpr int kBox = 8192;  // bytes of 64 x 64 elements
inline constexpr int kVectorBytes = static_cast<int>(sizeof(ChunkVectors));

/// The arguments of all three kernels. Heads [head, head + heads) are in work.
struct Arguments {
  CUtensorMap q, k, v, d_o, d_v;  // boxes of 64 tokens x 64 channels
  const Chunk* chunks;            // chunk table
  const int32_t* begin;
  int64_t entries;
  int chunks_a_row;  // of equal sequences; 0 with packed ones
  int tokens_a_row;
  int early_pairs;         // of sequence and head in work, whose states are made from the start
  uint32_t* taken;         // items drawn so far; zero before
  uint32_t* ready;         // [entries][heads]: parts of an item that are there; zero before
  const uint8_t* records;  // saved by the forward pass: [entries][HV]
  uint8_t* S;              // [entries][heads] tiles
  uint8_t* M;
  uint8_t* dS;
  uint8_t* dM;
  uint8_t* R;
  const float* alpha;  // [tokens, HV]
  const float* mu;     // null: 0, without momentum
  const float* eta;
  const float* beta;
  const float* pi;         // null: alpha
  const float* initial_S;  // [N segments, HV, V, K] or null
  const float* initial_M;
  const float* d_final_S;  // the same
  const float* d_final_M;
  void* d_v_rows;
  void* d_q;  // E [tokens, HV, K]; with shared heads fp32 partial sums
  void* d_k;
  float* d_alpha;
  float* d_mu;  // null without momentum
  float* d_eta;
  float* d_beta;
  float* d_pi;
  float* d_initial_S;  // [N, HV, V, K], null: not wanted
  float* d_initial_M;
  int segments;                    // that a sequence is cut into, hopper_segments.h
  const uint32_t* unknown_starts;  // [N, HV], null for one segment: segments at the sequence's end
                                   // whose initial_S, initial_M are not known
  const uint32_t* unknown_ends;    // at its beginning: d_final_S, d_final_M
  float scale;
  int sequences;
  int K;
  int V;
  int head;
  int heads;
  int HV;
  int group;     // value heads of a query/key head
  bool partial;  // d_q, d_k are fp32
  bool l2norm;
};

/// What a block of a recurrence walks. Segments whose end in the direction of the walk has no known
/// states are walked by the block of the last segment that has.
struct Walk {
  int sequence;
  int segment;
  int first;  // chunk table entries first .. last - 1
  int last;
  bool ends;  // at the sequence's end in the direction of the walk
};

template <bool kBackwards>
__device__ __forceinline__ Walk find_walk(const Arguments& args, int state, int head) {
  Walk walk;
  walk.sequence = state / args.segments;
  walk.segment = state % args.segments;
  const int begin = args.begin[walk.sequence];
  const int chunks = args.begin[walk.sequence + 1] - begin;
  const uint32_t* unknown = kBackwards ? args.unknown_ends : args.unknown_starts;
  const int lost =
      unknown == nullptr ? 0 : static_cast<int>(unknown[int64_t{walk.sequence} * args.HV + head]);
  const int outermost = kBackwards ? lost : args.segments - 1 - lost;
  walk.ends = walk.segment == outermost;
  walk.first = begin + segment_begin(chunks, walk.segment, args.segments);
  walk.last = begin + segment_begin(chunks, walk.segment + 1, args.segments);
  if (walk.ends) {
    (kBackwards ? walk.first : walk.last) = kBackwards ? begin : begin + chunks;
  } else if (kBackwards ? walk.segment < outermost : walk.segment > outermost) {
    walk.last = walk.first;
  }
  return walk;
}

/// What an item's rows of q [64], then of k [64], are multiplied with and added to dq and dk for
/// the derivative of the L2 norm: in the place of the item's R, when that has been read.
__device__ __forceinline__ float* norm_factors(const Arguments& args, int64_t item) {
  return reinterpret_cast<float*>(args.R + item * (args.V / 64) * kBox);
}

/// A ring of `kStages` buffers between the producer and the consumers.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// box (rows of this warpgroup's accumulator, 64 columns) = d[first ..], rounded to E.
template <class E, int kRegisters>
__device__ __forceinline__ void store_box(uint32_t box, int warp, int lane,
                                          const float (&d)[kRegisters], int first) {
  const uint32_t row_address = box + (16 * warp + lane % 16) * 128;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const int at = first + 4 * j;
    const int unit = (j + lane / 16) ^ (lane % 8);
    ptx::stmatrix(row_address + unit * 16, ptx::pack<E>(d[at], d[at + 1]),
                  ptx::pack<E>(d[at + 2], d[at + 3]), ptx::pack<E>(d[at + 4], d[at + 5]),
                  ptx::pack<E>(d[at + 6], d[at + 7]));
  }
}

/// Queues copies of boxes to global memory, one by one, as they are loaded (one thread).
template <int kBoxes>
__device__ __forceinline__ void store_boxes(uint8_t* global, const uint8_t* shared) {
#pragma unroll
  for (int i = 0; i < kBoxes; ++i) {
    ptx::bulk_store(global + i * kBox, shared + i * kBox, kBox);
  }
}

/// A power of two, the same in the whole warp, that brings the largest |d| of the warp into
/// [2^14, 2^15): fp16 operands made with it neither saturate nor lose small elements. `inverse` is
/// its reciprocal, at most 2^60: what is larger saturates, so that a run that grows without bound
/// stays finite.
template <int kCount>
__device__ __forceinline__ float half_scale(const float (&d)[kCount], float& inverse) {
  const uint32_t bits = __float_as_uint(largest_of_warp(largest_of(d)));
  const int exponent = min(253, max(127 - 60, 268 - static_cast<int>(bits >> 23)));
  inverse = __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23);
  return __uint_as_float(static_cast<uint32_t>(exponent) << 23);
}

/// A operand of four slices: d, rounded to fp16 in the unit of half_scale.
__device__ __forceinline__ void half_operand(uint32_t (&a)[4][4], float (&d)[32], float& inverse) {
  const float scale = half_scale(d, inverse);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    d[i] *= scale;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    parts::fragment<__half>(a[i], d, i);
  }
}

/// This thread's elements of rows [v0 ...) and columns [k0 ...) of a [V, K] fp32 state.
template <int kRegisters>
__device__ __forceinline__ void load_state(float (&d)[kRegisters], const float* state, int K) {
#pragma unroll
  for (int j = 0; j < kRegisters / 4; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float2 x =
          state == nullptr
              ? float2{0.0F, 0.0F}
              : *reinterpret_cast<const float2*>(state + static_cast<int64_t>(8 * i) * K + 8 * j);
      d[4 * j + 2 * i] = x.x;
      d[4 * j + 2 * i + 1] = x.y;
    }
  }
}

template <int kRegisters>
__device__ __forceinline__ void store_state(float* state, const float (&d)[kRegisters], int K) {
#pragma unroll
  for (int j = 0; j < kRegisters / 4; ++j) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float2*>(state + static_cast<int64_t>(8 * i) * K + 8 * j) =
          float2{d[4 * j + 2 * i], d[4 * j + 2 * i + 1]};
    }
  }
}

/// How the recurrences cut their work. A block has kConsumers warpgroups, each with 64 value
/// channels by kWarpgroupK key channels of both states in registers, and a producer warpgroup.
template <int kK, int kBlockBoxesV, bool kMomentum>
struct Split {
  static constexpr int kStates = kMomentum ? 2 : 1;  // S, M
  static constexpr int kBoxesV = kBlockBoxesV;       // 64 value channels each, 1 or 2 a block
  static constexpr int kHalves = kK == 256 ? 2 : 1;  // warpgroups that share 64 value channels
  static constexpr int kWarpgroupK = kK / kHalves;   // 64 or 128
  static constexpr int kConsumers = kBoxesV * kHalves;
  static constexpr int kThreads = 128 * (kConsumers + 1);
  static_assert(kConsumers == 1 || kConsumers == 2);
  static constexpr int kBoxesK = kK / 64;
  static constexpr int kWarpgroupBoxesK = kWarpgroupK / 64;
};

/// A warpgroup's states, or their gradients, rounded to boxes in shared memory.
template <class E, class Cut, int kRegisters>
__device__ __forceinline__ void store_state_boxes(uint32_t S_box, uint32_t M_box, int warp,
                                                  int lane, const float (&S)[kRegisters],
                                                  const float (&M)[kRegisters]) {
#pragma unroll
  for (int i = 0; i < Cut::kWarpgroupBoxesK; ++i) {
    store_box<E>(S_box + i * kBox, warp, lane, S, 32 * i);
    if constexpr (Cut::kStates == 2) {
      store_box<E>(M_box + i * kBox, warp, lane, M, 32 * i);
    }
  }
}

/// X_S = S^T K^T and X_M = M^T K^T over the warpgroup's key channels, one group.
template <class E, class Cut>
__device__ __forceinline__ void key_products(float (&XS)[32], float (&XM)[32], uint32_t S_box,
                                             uint32_t M_box, uint32_t k_box) {
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < Cut::kWarpgroupK / 16; ++i) {
    const uint32_t step = (i / 4) * kBox + (i % 4) * 32;
    const uint64_t b = ptx::descriptor_k(k_box + step);
    ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(XS, ptx::descriptor_k(S_box + step), b, i > 0);
    if constexpr (Cut::kStates == 2) {
      ptx::wgmma_sa<E, ptx::Major::kK, ptx::Major::kK>(XM, ptx::descriptor_k(M_box + step), b,
                                                       i > 0);
    }
  }
  ptx::wgmma_commit();
}

/// Sums the two warpgroups' partial sums over their halves of K: d += the other's d. `exchange`
/// holds 2 x 32 x 128 floats.
__device__ __forceinline__ void add_other_half(float (&d)[32], float* exchange, int half,
                                               int thread) {
  float* mine = exchange + half * 4096 + thread;
  const float* other = exchange + (1 - half) * 4096 + thread;
  ptx::named_barrier(7, 256);  // the last chunk's sums have been read
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    mine[i * 128] = d[i];
  }
  ptx::named_barrier(5, 256);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    d[i] += other[i * 128];
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
