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
inline constexpr int kColumnM = kChunk;                // the initial M as a column of the masks
inline constexpr int kColumnS = kChunk + 1;            // the initial S
inline constexpr int kStrideA = kChunk + 4;            // floats a row of A: no bank conflicts
inline constexpr int kLaneM = kBlockTokens;            // lanes of the mask recurrence: the M and
inline constexpr int kLaneS = kBlockTokens + 1;        // the S that the block starts with
inline constexpr int kMaxScaleExponent = 8;            // 2^8 g and 2^8 n still fit fp16
inline constexpr float kLargestHalf = 65504.0f;

/// Gates of the chunk, neutral past its end.
struct ChunkGates {
  float alpha[kChunk];
  float mu[kChunk];
  float eta[kChunk];
  float beta[kChunk];
  float pi[kChunk];
};

/// The masks in factored form: inside a block by element, beyond it through the row at the end of
/// the block before. Inside a block H[t, j] = pi_t G[t-1, j].
struct ChunkMasks {
  float G[kChunk][kBlockTokens + 8];  // G[t, j] for j in t's block, 0 for j > t; no bank conflicts
  float a[kChunk + 1];                // of t in its block: a'_t, b'_t, c'_t, e'_t, m'_t; two of
  float b[kChunk + 1];                // them are written at once, to different banks
  float c[kChunk + 1];
  float e[kChunk + 1];
  float m[kChunk];
  alignas(16) float end_G[kBlocks][kChunk + 4];  // row of G at the end of each block, all columns
  float end_Mu[kBlocks][kChunk + 4];
};

/// Shared memory. The q and k tiles are read by wgmma only; what comes after the scores lies over
/// them, and the T of the record over A.
template <int K>
struct PrepareShared {
  struct After {
    union {
      float A[kChunk][kStrideA];
      char T[ptx::kBoxBytes];
    };
    alignas(128) char PGD[ptx::kBoxBytes];
    ChunkVectors vectors;
  };
  union {
    alignas(1024) char tiles[2][K / 64][ptx::kBoxBytes];  // q, k
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
};

}  // namespace mdn::kernels::cuda::hopper
