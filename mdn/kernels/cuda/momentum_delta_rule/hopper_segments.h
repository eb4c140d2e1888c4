// A long sequence with few heads leaves most multiprocessors idle: its walk is one chain of chunks.
// So its chunks are cut into segments that are walked at once. What a segment does to the states
// X = [S; M] is affine, X_end = A X_start + b, and neither A nor b needs to know X_start:
//
//   1. maps     b: the segment walked from zero states (the first one: from the initial states);
//               A: walked with v = 0 from the unit vectors, a column each (hopper_segment_map.cuh)
//   2. starts   X_{s+1} = A_s X_s + b_s from segment to segment, fp32 (segment_states.h)
//   3. walk     every segment from its own start, with outputs (hopper_recurrence.cuh)
//
// Where a map cannot be trusted (`unknown` below) a sequence's remaining segments are walked one
// after the other by the block of the last segment whose start is known: as if it were not cut.
// Packed sequences are not cut, nor is any with K = 256.
//
// The backward pass finds the maps and the starts in `saved`. Its states are those of the segments
// from their starts; its chain is affine too, dX_start = A^T dX_end + b with the same A:
//
//     4. ends    b: the chain over each segment from dX_end = 0 (hopper_segment_ends.cuh), then
//                dX_end of segment s - 1 = A_s^T dX_end of s + b_s (segment_states.h)
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// Segments that every sequence of the problem is cut into, 1: none. Chosen from sizes alone: the
/// number with the least predicted time among those whose blocks all run at once.
int choose_segments(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);

/// Blocks of the maps' kernel that have work, in `segments` > 1 segments a sequence.
int64_t segment_map_blocks(const MomentumDeltaRuleProblem& problem, int segments);

/// Microseconds that a block of the maps' kernel takes for a chunk.
double segment_map_chunk_time(bool momentum);

/// What the kernels share, and leave to the backward pass: in `saved` behind the records, or
/// in the workspace. Segment i of sequence n is row n * segments + i.
struct SegmentMemory {
  float* start_S = nullptr;     // [N segments, HV, V, K]: states that each segment starts with;
  float* start_M = nullptr;     //   first the b of the segment before
  float* maps = nullptr;        // [N segments, HV, X, X]: A, row: channel of X_start, column: of
                                //   X_end; X = 2 K, S before M; K without momentum
  float* norms = nullptr;       // [N segments, HV, X, 2]: of A's row, squared, its S and M parts
  uint32_t* unknown = nullptr;  // [N, HV], 0 before: how many segments at the sequence's end have
                                //   starts that the maps could not give
};

/// Bytes of a SegmentMemory, a multiple of 256; 0 for one segment.
size_t segment_bytes(const MomentumDeltaRuleProblem& problem, int segments);

/// Divides segment_bytes at `memory`.
SegmentMemory segment_memory(const MomentumDeltaRuleProblem& problem, int segments, char* memory);

/// The same of the backward pass, in its workspace.
struct SegmentEnds {
  float* end_S = nullptr;       // [N segments, HV, V, K]: gradients of the states that each segment
  float* end_M = nullptr;       //   ends with; first the b of the segment behind
  uint32_t* unknown = nullptr;  // [N, HV], 0 before: of how many segments at the sequence's
                                //   beginning the maps could not give them
};
size_t segment_ends_bytes(const MomentumDeltaRuleProblem& problem, int segments);
SegmentEnds segment_ends(const MomentumDeltaRuleProblem& problem, int segments, char* memory);

/// Queues zeros to one of the `unknown`.
void clear_unknown(const MomentumDeltaRuleProblem& problem, uint32_t* unknown, cudaStream_t stream);

}  // namespace mdn::kernels::cuda
