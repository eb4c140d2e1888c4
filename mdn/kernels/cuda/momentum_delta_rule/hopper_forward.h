// Between the host side of the Hopper forward pass and its kernels, which are compiled one element
// type a file.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/config.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

namespace hopper {
/// In device memory, zero before prepare starts; behind it a word for every record, 1 when it is
/// written (hopper_progress.cuh).
struct Progress {
  uint32_t taken;          // of the items that are everyone's, beyond each block's first
  uint32_t taken_helpers;  // of the others
  uint32_t helpers;        // blocks that stay until all items are done
  uint32_t pieces;         // taken, where blocks of the recurrence share walks
  uint32_t unused[60];
};
static_assert(sizeof(Progress) == 256);

/// Where blocks of the recurrence share walks (hopper_recurrence_work.cuh): what the parts of walks
/// hand over, by the piece that receives it.
struct HandedStates {
  float* states = nullptr;  // [pieces] of S, then M without which there is none: [channels of V, K]
  uint32_t* words = nullptr;  // [pieces, kHandingWarps], 1: there; 0 before
};
inline constexpr int kHandingWarps = 8;  // consumers of a block, at most
inline constexpr int kMaxParts = 8;      // of walks in a piece
}  // namespace hopper

/// Device pointers and tensor maps of one call.
struct HopperForwardArguments {
  CUtensorMap q;
  CUtensorMap k;
  CUtensorMap v;
  ChunkTable table;
  char* records = nullptr;  // hopper_saved.h
  hopper::Progress* progress = nullptr;
  hopper::HandedStates handed;
  SegmentMemory segments;
};

/// Walks of one tile of 64 value channels, sequences not cut.
inline int64_t tile_walks(const MomentumDeltaRuleProblem& problem) {
  return problem.N * problem.HV * (problem.V / 64);
}

/// Bytes of the records of a call.
size_t hopper_record_bytes(const MomentumDeltaRuleProblem& problem);

/// The maps of segments, between the two kernels below where config.segments > 1.
void launch_hopper_segment_map(const MomentumDeltaRuleForward& call,
                               const HopperForwardConfig& config,
                               const HopperForwardArguments& arguments, cudaStream_t stream);

/// The two kernels, for T = __nv_bfloat16 or __half.
template <class T>
void launch_hopper_prepare(const MomentumDeltaRuleForward& call, const HopperForwardConfig& config,
                           const HopperForwardArguments& arguments, cudaStream_t stream);
template <class T>
void launch_hopper_recurrence(const MomentumDeltaRuleForward& call,
                              const HopperForwardConfig& config,
                              const HopperForwardArguments& arguments, cudaStream_t stream);

/// Fills `arguments` for a call, queueing the chunk table.
HopperForwardArguments hopper_forward_arguments(const MomentumDeltaRuleForward& call,
                                                const HopperForwardConfig& config,
                                                cudaStream_t stream);

}  // namespace mdn::kernels::cuda
