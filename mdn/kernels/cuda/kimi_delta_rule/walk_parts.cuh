// What the walks over chunks share: a block owns 64 value channels of a head, each warp 16 of them,
// whose state [16, kK] (or its gradient) stays in the warp's registers as float32 accumulators of
// ptx/mma.cuh. Rounded, the same registers are the operand of the products that read the state, so
// that warps exchange nothing; they share a ring of records and of token tiles [16, 64 values].
#pragma once

#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/convert.cuh"
#include "mdn/kernels/cuda/ptx/descriptor.cuh"
#include "mdn/kernels/cuda/ptx/matrix.cuh"
#include "mdn/kernels/cuda/ptx/mma.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda::kimi {

inline constexpr int kWalkWarps = 4;
inline constexpr int kWalkThreads = 32 * kWalkWarps;
inline constexpr int kBlockValues = kWalkWarps * kValueTile;
inline constexpr int kStages = 5;
inline constexpr int kTokenTile = kChunk * kBlockValues * 2;  // bytes
static_assert(kTokenTile == 16 * kWalkThreads);

/// What blockIdx stands for.
struct WalkBlock {
  int64_t sequence, head;
  int64_t first_value;  // of the block
  int64_t begin, end;   // tokens
  int64_t first_chunk;  // entry in the chunk table

  __device__ WalkBlock(const KimiDeltaRuleProblem& problem, const Work& work) {
    const int64_t tiles = (problem.V + kBlockValues - 1) / kBlockValues;
    first_value = blockIdx.x % tiles * kBlockValues;
    head = work.first_head + blockIdx.x / tiles % work.heads;
    sequence = blockIdx.x / tiles / work.heads;
    begin = problem.cu_seqlens ? problem.cu_seqlens[sequence] : sequence * problem.T;
    end = problem.cu_seqlens ? problem.cu_seqlens[sequence + 1] : begin + problem.T;
    first_chunk = work.table.begin[sequence];
  }
  __device__ int chunks() const { return static_cast<int>((end - begin + kChunk - 1) / kChunk); }
  __device__ int64_t token(int chunk) const { return begin + int64_t{chunk} * kChunk; }
  __device__ int length(int chunk) const {
    return static_cast<int>(min(int64_t{kChunk}, end - token(chunk)));
  }
};

/// What a thread works on: its warp's value channels of the block's head.
struct WalkThread {
  int thread, lane, warp;
  WalkBlock block;
  int chunks;
  int64_t value;    // first channel of the warp
  bool has_values;  // within V
  int64_t state;    // the head's in [N, HV, V, K]

  __device__ WalkThread(const KimiDeltaRuleProblem& problem, const Work& work)
      : thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp(thread / 32),
        block(problem, work),
        chunks(block.chunks()),
        value(block.first_value + kValueTile * warp),
        has_values(value < problem.V),
        state((block.sequence * problem.HV + block.head) * problem.V * problem.K) {}
};

inline int64_t walk_blocks(const KimiDeltaRuleProblem& problem, const Work& work) {
  return problem.N * work.heads * ((problem.V + kBlockValues - 1) / kBlockValues);
}

/// Unit `unit` (16 bytes) of row `row` of a swizzled tile with rows of kRowBytes.
template <int kRowBytes>
__device__ __forceinline__ uint32_t unit_at(int row, int unit) {
  return row * kRowBytes + ((unit ^ (row % 8)) * 16);
}

/// Lane addresses for ldmatrix of two neighbouring units of a swizzled tile of 16 rows.
/// kRowsFirst: words 0, 1 are the halves of the rows, words 2, 3 those of the next unit; otherwise
/// words 0, 1 are the units of the first 8 rows, words 2, 3 of the others.
template <int kRowBytes, bool kRowsFirst>
__device__ __forceinline__ uint32_t lane_at(int lane, int unit) {
  const int low = lane / 8 % 2, high = lane / 16;
  const int row = lane % 8 + 8 * (kRowsFirst ? low : high);
  return unit_at<kRowBytes>(row, unit + (kRowsFirst ? high : low));
}

/// The same of a matrix of 16 x 16 with rows of 32 bytes, not swizzled.
template <bool kRowsFirst>
__device__ __forceinline__ uint32_t matrix_lane_at(int lane) {
  const int low = lane / 8 % 2, high = lane / 16;
  return (lane % 8 + 8 * (kRowsFirst ? low : high)) * 32 + (kRowsFirst ? high : low) * 16;
}

/// This thread's part of copying `kBytes` in units of 16.
template <int kBytes>
__device__ __forceinline__ void copy_record(uint32_t to, const unsigned char* from, int thread) {
#pragma unroll
  for (int i = 0; i < kBytes; i += 16 * kWalkThreads) {
    if (i + 16 * kWalkThreads <= kBytes || i + 16 * thread < kBytes) {
      ptx::async_copy_unit(to + i + 16 * thread, from + i + 16 * thread);
    }
  }
}

/// This thread's unit of a tile [16 tokens, 64 values] of a tensor [B, T, HV, V]; zeros outside.
template <class T>
__device__ __forceinline__ void copy_tokens(uint32_t to, const void* tensor,
                                            const KimiDeltaRuleProblem& problem,
                                            const WalkBlock& block, int chunk, int thread) {
  const int row = thread / 8, unit = thread % 8;
  const int64_t value = block.first_value + 8 * unit;
  const bool inside = row < block.length(chunk) && value < problem.V;
  const int64_t at =
      inside ? ((block.token(chunk) + row) * problem.HV + block.head) * problem.V + value : 0;
  ptx::async_copy_unit(to + unit_at<128>(row, unit), static_cast<const T*>(tensor) + at, !inside);
}

/// Bytes of a stage of the ring: a record, up to what a walk reads of it, and a token tile.
template <int kRecordBytes>
inline constexpr int kStageBytes = kRecordBytes + kTokenTile;

/// This thread's part of asking for a chunk's record and its tile of `tensor`, a group of copies of
/// its own; an empty one past the walk's last chunk (`there` false).
template <class T, int kK, int kRecordBytes>
__device__ __forceinline__ void fetch_chunk(const unsigned char* ring, const WalkThread& at,
                                            const KimiDeltaRuleProblem& problem, const Work& work,
                                            const void* tensor, int chunk, bool there) {
  if (there) {
    const uint32_t stage = ptx::shared_address(ring) + chunk % kStages * kStageBytes<kRecordBytes>;
    const int64_t place = work.place(at.block.first_chunk + chunk, at.block.head);
    copy_record<kRecordBytes>(stage, work.records + place * Record<kK>::kBytes, at.thread);
    copy_tokens<T>(stage + kRecordBytes, tensor, problem, at.block, chunk, at.thread);
  }
  ptx::async_copy_commit();
}

/// A state [16 values, kK] of float32 numbers in memory [V, K] to or from accumulators.
template <int kK>
__device__ __forceinline__ void load_state(float (&S)[kK / 8][4], const float* from, int64_t value,
                                           const KimiDeltaRuleProblem& problem, int lane) {
#pragma unroll
  for (int j = 0; j < kK / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = value + lane / 4 + 8 * half;
      float2 pair = make_float2(0, 0);
      if (from != nullptr && row < problem.V && 8 * j < problem.K) {
        pair = *reinterpret_cast<const float2*>(from + row * problem.K + 8 * j + lane % 4 * 2);
      }
      S[j][2 * half] = pair.x;
      S[j][2 * half + 1] = pair.y;
    }
  }
}

template <int kK>
__device__ __forceinline__ void store_state(const float (&S)[kK / 8][4], float* to, int64_t value,
                                            const KimiDeltaRuleProblem& problem, int lane) {
#pragma unroll
  for (int j = 0; j < kK / 8; ++j) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = value + lane / 4 + 8 * half;
      if (row < problem.V && 8 * j < problem.K) {
        *reinterpret_cast<float2*>(to + row * problem.K + 8 * j + lane % 4 * 2) =
            make_float2(S[j][2 * half], S[j][2 * half + 1]);
      }
    }
  }
}

/// Columns 16 slice .. 16 slice + 15 of accumulators as an A operand.
template <class T, int kTiles>
__device__ __forceinline__ void to_operand(uint32_t (&a)[4], const float (&d)[kTiles][4],
                                           int slice) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float(&tile)[4] = d[2 * slice + i / 2];
    a[i] = ptx::pack<T>(tile[i % 2 * 2], tile[i % 2 * 2 + 1]);
  }
}

/// The transpose of a 16 x 16 operand.
__device__ __forceinline__ uint4 transposed(const uint32_t (&a)[4]) {
  return make_uint4(ptx::transpose(a[0]), ptx::transpose(a[2]), ptx::transpose(a[1]),
                    ptx::transpose(a[3]));
}

/// d = a B^T: [16, kK] times rows of 16 tokens, `tile` swizzled. Four sums side by side, because a
/// product waits for the one that it adds to.
template <class T, int kK>
__device__ __forceinline__ void times_tokens(float (&d)[2][4], const uint32_t (&a)[kK / 16][4],
                                             uint32_t tile, int lane) {
  float odd[2][4] = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    d[0][i] = d[1][i] = 0;
  }
#pragma unroll
  for (int p = 0; p < kK / 16; ++p) {
    uint32_t b[4];
    ptx::ldmatrix(b, tile + lane_at<2 * kK, false>(lane, 2 * p));
    ptx::mma<T>(p % 2 ? odd[0] : d[0], a[p], b[0], b[1]);
    ptx::mma<T>(p % 2 ? odd[1] : d[1], a[p], b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    d[0][i] += odd[0][i];
    d[1][i] += odd[1][i];
  }
}

/// S += a B: [16, 16 tokens] times [16 tokens, kK], `tile` swizzled.
template <class T, int kK>
__device__ __forceinline__ void add_tokens(float (&S)[kK / 8][4], const uint32_t (&a)[4],
                                           uint32_t tile, int lane) {
#pragma unroll
  for (int p = 0; p < kK / 16; ++p) {
    uint32_t b[4];
    ptx::ldmatrix_trans(b, tile + lane_at<2 * kK, true>(lane, 2 * p));
    ptx::mma<T>(S[2 * p], a, b[0], b[1]);
    ptx::mma<T>(S[2 * p + 1], a, b[2], b[3]);
  }
}

/// d += a B for a 16 x 16 matrix B (kTransposed: B^T) with rows of 32 bytes.
template <class T, bool kTransposed>
__device__ __forceinline__ void times_matrix(float (&d)[2][4], const uint32_t (&a)[4],
                                             uint32_t matrix, int lane) {
  uint32_t b[4];
  if constexpr (kTransposed) {
    ptx::ldmatrix(b, matrix + matrix_lane_at<false>(lane));
  } else {
    ptx::ldmatrix_trans(b, matrix + matrix_lane_at<true>(lane));
  }
  ptx::mma<T>(d[0], a, b[0], b[1]);
  ptx::mma<T>(d[1], a, b[2], b[3]);
}

/// Columns of S times the decay over the chunk, floats [kK] in shared memory.
template <int kK>
__device__ __forceinline__ void decay_state(float (&S)[kK / 8][4], const unsigned char* decay,
                                            int lane) {
#pragma unroll
  for (int j = 0; j < kK / 8; ++j) {
    const float2 pair = reinterpret_cast<const float2*>(decay)[4 * j + lane % 4];
    S[j][0] *= pair.x;
    S[j][1] *= pair.y;
    S[j][2] *= pair.x;
    S[j][3] *= pair.y;
  }
}

/// Columns of [16, 16 tokens] times a number a token, floats [16] in shared memory.
__device__ __forceinline__ void scale_tokens(float (&d)[2][4], const unsigned char* factors,
                                             int lane) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float2 pair = reinterpret_cast<const float2*>(factors)[4 * i + lane % 4];
    d[i][0] *= pair.x;
    d[i][1] *= pair.y;
    d[i][2] *= pair.x;
    d[i][3] *= pair.y;
  }
}

/// Rows of a tensor [B, T, HV, V] from a tile [16 tokens, 16 values] of words as an A operand has
/// them.
template <class T>
__device__ __forceinline__ void store_rows(void* tensor, const uint4& words,
                                           const KimiDeltaRuleProblem& problem,
                                           const WalkBlock& block, int chunk, int64_t value,
                                           int lane) {
  const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i % 2 * 8;
    const int64_t column = value + i / 2 * 8 + lane % 4 * 2;
    if (row < block.length(chunk) && column < problem.V) {
      T* const to = static_cast<T*>(tensor) +
                    ((block.token(chunk) + row) * problem.HV + block.head) * problem.V + column;
      *reinterpret_cast<uint32_t*>(to) = word[i];
    }
  }
}

}  // namespace mdn::kernels::cuda::kimi
