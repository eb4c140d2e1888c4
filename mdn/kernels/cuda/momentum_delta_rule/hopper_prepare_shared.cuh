// What the parts of prepare (hopper_prepare.cuh) share: arguments, sizes and shared memory.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/ptx/tensor_map.h"

namespace mdn::kernels::cuda::hopper {

struct PrepareParams {
  const Chunk* chunks;
  const float* alpha;  // gates [tokens, HV]
  const float* mu;     // null: 0
  const float* eta;
  const float* beta;
  const float* pi;  // null: alpha
  char* records;
  Progress* progress;
  ItemOrder order;
  int group;  // value heads a query/key head
  float scale;
  bool l2norm;
};

inline constexpr int kPrepareThreads = 128;
inline constexpr int kBlockTokens = 16;                // of the mask recurrence and the inverse
inline constexpr int kBlocks = kChunk / kBlockTokens;  // 4
inline constexpr int kKeyScores = kChunk / 2;          // a thread's first of K K^T among its scores
inline constexpr int kColumnM = kChunk;                // the initial M as a column of the masks
inline constexpr int kColumnS = kChunk + 1;            // the initial S
inline constexpr int kStrideBlock = kBlockTokens + 8;  // floats a row of a block: no bank conflicts
inline constexpr int kLaneM = kBlockTokens;            // lanes of the mask recurrence: the M and
inline constexpr int kLaneS = kBlockTokens + 1;        // the S that the block starts with
inline constexpr int kMaxScaleExponent = 8;            // 2^8 g and 2^8 n still fit fp16
inline constexpr uint32_t kLargestHalves = 0x7BFF7BFF;  // 65504 twice

/// Gates of the chunk, neutral past its end.
struct alignas(16) ChunkGates {
  float alpha[kChunk];
  float mu[kChunk];
  float eta[kChunk];
  float beta[kChunk];
  float pi[kChunk];
};

/// The masks in factored form: inside a block by element, beyond it through the row at the end of
/// the block before. Inside a block H[t, j] = pi_t G[t-1, j].
struct ChunkMasks {
  float G[kChunk][kStrideBlock];    // G[t, j] for j in t's block, 0 for j > t
  alignas(16) float a[kChunk + 4];  // of t in its block: a'_t, b'_t, c'_t, e'_t, m'_t; two of
  alignas(16) float b[kChunk + 4];  // them are written at once, to different banks
  alignas(16) float c[kChunk + 4];
  alignas(16) float e[kChunk + 4];
  alignas(16) float m[kChunk];
  alignas(16) float end_G[kBlocks][kChunk + 4];  // row of G at the end of each block, all columns
  float end_Mu[kBlocks][kChunk + 4];
};

/// A block of T^T as a left operand of mma, each number as two bf16, a lane's words together.
struct HandedBlock {
  uint4 high[32];
  uint4 low[32];
};

/// Shared memory. What comes after the scores lies over the q and k tiles.
template <int K>
struct PrepareShared {
  struct After {
    alignas(128) char T[ptx::kBoxBytes];
    alignas(128) char PGD[ptx::kBoxBytes];
    ChunkVectors vectors;
    float diagonal[kBlocks][kBlockTokens][kStrideBlock];  // of A, then tiles of T^T
    HandedBlock handed[kBlocks * (kBlocks - 1) / 2];      // from warp to warp, invert_rows
  };
  union {
    alignas(1024) char tiles[K / 64][2][ptx::kBoxBytes];  // boxes of q and of k, by turns
    After after;
  };
  ChunkMasks masks;
  ChunkGates gates[2];  // of this item and the next
  Chunk chunks[2];
  float rq[kChunk];
  float rk[kChunk];
  float largest[kPrepareThreads / 32];      // |T| of a warp
  float largest_row[kPrepareThreads / 32];  // sum of |T| over a row
  float largest_write[kChunk / 32];         // g or n
  Item items[2];
  int unpublished;  // index of the last record while it is not yet said to be there, else -1
  bool helps_only;  // all items that are everyone's are taken
  uint64_t loaded;
  uint64_t handed_on[kBlocks - 1];  // rows of T, invert_rows
};

}  // namespace mdn::kernels::cuda::hopper
