// What a block of a recurrence works on: a walk over the chunks of a sequence (or of one of its
// segments) for one value head and a tile or two of 64 value channels, or parts of several such
// walks.
//
// Parts. More blocks than multiprocessors would run as waves, of which the last leaves
// multiprocessors idle: 192 walks on 132 take the time of two. There all walks, one behind the
// other, make a line that is cut into one piece a multiprocessor, all of one length. A walk lies on
// the line from its last chunk to its first, so where a cut divides it the block of the one piece
// ends with its last chunks and the block of the other begins with its first ones. That block hands
// the states over in global memory, fp32 and exact, and has done so long before they are needed: a
// piece is no shorter than a walk. A block waits only for one that has begun before it.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"

namespace mdn::kernels::cuda::hopper {

struct RecurrenceParams {
  const Chunk* chunks;
  const int32_t* begin;  // chunks of a sequence, chunk_table.h
  const char* records;
  Progress* progress;
  const float* initial_S;  // [N segments, HV, V, K], null: zeros
  const float* initial_M;
  float* final_S;  // [N, HV, V, K], null: not wanted
  float* final_M;
  void* o;  // [tokens, HV, V]
  int HV;
  int group;  // value heads a query/key head
  int V;
  int segments;             // that a sequence is cut into, hopper_segments.h
  const uint32_t* unknown;  // [N, HV]; null for one segment
  int walks;                // where blocks share walks (then of one segment each), else 0
  int walk_chunks;          // of each
  HandedStates handed;
};

/// A walk or a part of it. The block's chunks are counted through all of its parts: chunk i is
/// entry begin + i of the chunk table.
struct RecurrenceWork {
  int sequence;
  int start;  // of the initial states
  bool ends;  // with the sequence
  int head;
  int value;  // first channel of V
  int begin;
  int from;  // the block's chunks from .. to - 1
  int to;
  int received;  // piece to which the states of the part before are handed over, -1: none before
  int handed;    // the same of the part behind
};

/// A whole walk. Tiles of V of one head are neighbours: what they share of q, k and records comes
/// from L2.
__device__ __forceinline__ RecurrenceWork whole_walk(const RecurrenceParams& params, int tiles,
                                                     int walk) {
  const int parts = params.V / (64 * tiles);
  RecurrenceWork work;
  work.value = walk % parts * (64 * tiles);
  walk /= parts;
  work.head = walk % params.HV;
  work.start = walk / params.HV;
  work.sequence = work.start / params.segments;
  const int segment = work.start % params.segments;
  const int first = params.begin[work.sequence];
  const int chunks = params.begin[work.sequence + 1] - first;
  // Segments whose start is known; the last of them is walked to the sequence's end.
  const int known =
      params.segments -
      (params.unknown == nullptr
           ? 0
           : static_cast<int>(params.unknown[int64_t{work.sequence} * params.HV + work.head]));
  work.ends = segment == known - 1;
  const int from = segment_begin(chunks, segment, params.segments);
  const int to = work.ends ? chunks : segment_begin(chunks, segment + 1, params.segments);
  work.begin = first + from;
  work.from = 0;
  work.to = segment < known ? to - from : 0;
  work.received = work.handed = -1;
  return work;
}

/// Parts of this block, in the order in which it works on them; their number is returned. One
/// thread.
__device__ __forceinline__ int block_works(RecurrenceWork (&works)[kMaxParts],
                                           const RecurrenceParams& params, int tiles) {
  if (params.walks == 0) {
    works[0] = whole_walk(params, tiles, static_cast<int>(blockIdx.x));
    return 1;
  }
  // Pieces from the last one on, in the order in which blocks begin.
  const auto blocks = static_cast<int>(gridDim.x);
  const int piece = blocks - 1 - static_cast<int>(atomicAdd(&params.progress->pieces, 1u));
  const int length = params.walk_chunks;
  const int64_t line = int64_t{params.walks} * length;
  auto at = static_cast<int>(line * piece / blocks);
  const auto end = static_cast<int>(line * (piece + 1) / blocks);
  int count = 0;
  int chunks = 0;
  while (at < end) {
    const int walk = at / length;
    const int first = walk * length;  // on the line, of the walk's last chunk
    const int to = min(end, first + length);
    RecurrenceWork work = whole_walk(params, tiles, walk);
    work.from = chunks;
    chunks += to - at;
    work.to = chunks;
    work.begin += first + length - to - work.from;
    work.ends = at == first;
    work.received = to < first + length ? piece : -1;
    work.handed = at > first ? piece - 1 : -1;
    works[count++] = work;
    at = to;
  }
  return count;
}

/// The words of the states that were handed over to a piece: one a warp of the consumers.
__device__ __forceinline__ uint32_t* handed_words(const RecurrenceParams& params, int piece) {
  return params.handed.words + piece * kHandingWarps;
}

/// Says that this warp's states are there. They are waited for by wait_word, every lane of the same
/// warp of another block, and a lane reads what the same lane wrote.
__device__ __forceinline__ void hand_over(uint32_t* word) {
  __threadfence();
  __syncwarp();
  if (ptx::elect_one()) {
    set_word(word);
  }
}

}  // namespace mdn::kernels::cuda::hopper
