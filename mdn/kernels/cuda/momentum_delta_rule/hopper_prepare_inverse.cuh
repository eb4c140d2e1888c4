// Prepare (hopper_prepare.cuh), steps 3 and 4: the inverse T of A = I + L D, and its rounding to
// the record's fp16. Tiles of 8 x 8 on the diagonal are inverted in fp32. The rest of T follows
// from products on the tensor cores: of two bf16 a number, 16 bits of it with the range of fp32,
// and with sums in fp32. Warp w makes row w of blocks of 16 x 16 and keeps it in registers.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_shared.cuh"
#include "mdn/kernels/cuda/ptx/convert.cuh"
#include "mdn/kernels/cuda/ptx/descriptor.cuh"
#include "mdn/kernels/cuda/ptx/matrix.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/mma.cuh"

namespace mdn::kernels::cuda::hopper {

/// Two neighbouring numbers, each as the sum of two bf16.
struct SplitWord {
  uint32_t high;
  uint32_t low;
};

__device__ __forceinline__ SplitWord split_pair(float x, float y) {
  SplitWord out;
  out.high = ptx::pack_bf16(x, y);
  const float2 rounded = ptx::unpack<__nv_bfloat16>(out.high);
  out.low = ptx::pack_bf16(x - rounded.x, y - rounded.y);
  return out;
}

__device__ __forceinline__ SplitWord transpose(const SplitWord& x) {
  return {ptx::transpose(x.high), ptx::transpose(x.low)};
}

/// A block of 16 x 16 as an operand of mma (ptx/mma.cuh), left or, transposed by mma, right.
struct SplitBlock {
  uint32_t high[4];
  uint32_t low[4];
};

/// Of a block as mma leaves it, columns 0 .. 7 and 8 .. 15.
__device__ __forceinline__ SplitBlock split_block(const float (&x)[2][4]) {
  SplitBlock out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const SplitWord word = split_pair(x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]);
    out.high[i] = word.high;
    out.low[i] = word.low;
  }
  return out;
}

/// A block of 16 x 16 as mma leaves it, in fp16, saturating.
struct HalfBlock {
  uint32_t words[4];
};

__device__ __forceinline__ HalfBlock pack_block(const float (&x)[2][4]) {
  HalfBlock out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out.words[i] = ptx::pack_half(x[i / 2][i % 2 * 2], x[i / 2][i % 2 * 2 + 1]);
  }
  return out;
}

/// To its place in a matrix of the record, transposed.
__device__ __forceinline__ void store_transposed_block(char* matrix, const HalfBlock& x,
                                                       int row_block, int column_block, int lane) {
  const int row = row_block * kBlockTokens + lane / 16 * 8 + lane % 8;
  const int unit = (2 * column_block + lane / 8 % 2) ^ (lane % 8);
  ptx::stmatrix_trans(ptx::shared_address(matrix) + static_cast<uint32_t>(row * 128 + unit * 16),
                      x.words[0], x.words[1], x.words[2], x.words[3]);
}

/// out += x y^T; the product of the low parts is below what both are rounded by.
__device__ __forceinline__ void add_product(float (&out)[2][4], const SplitBlock& x,
                                            const SplitBlock& y) {
  const auto add = [&](const uint32_t(&left)[4], const uint32_t(&right)[4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ptx::mma<__nv_bfloat16>(out[half], left, right[half], right[half + 2]);
    }
  };
  add(x.low, y.high);
  add(x.high, y.low);
  add(x.high, y.high);
}

/// x = x right^T.
__device__ __forceinline__ void multiply(float (&x)[2][4], const SplitBlock& right) {
  const SplitBlock left = split_block(x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i / 4][i % 4] = 0;
  }
  add_product(x, left, right);
}

/// x y^T of tiles of 8 x 8.
__device__ __forceinline__ float2 tile_product(const SplitWord& x, const SplitWord& y) {
  float out[4] = {};
  ptx::mma<__nv_bfloat16>(out, {x.low, 0, 0, 0}, y.high, 0);
  ptx::mma<__nv_bfloat16>(out, {x.high, 0, 0, 0}, y.low, 0);
  ptx::mma<__nv_bfloat16>(out, {x.high, 0, 0, 0}, y.high, 0);
  return {out[0], out[1]};
}

/// Inverts a 16 x 16 unit lower triangular block, one warp: its tiles of 8 x 8 on the diagonal by
/// substitution, lane c (of 16) owning column c,
///     x_i = [i == c] - sum over j < i of A[i, j] x_j
/// and with their inverses X, Y the tile between them: -Y A21 X. `inverse` is its transpose as mma
/// would leave it, `left` the same as a left operand, `right` the inverse as a right one.
__device__ __forceinline__ void invert_block(float (&inverse)[2][4], SplitBlock& left,
                                             SplitBlock& right, float (*A)[kStrideBlock],
                                             int lane) {
  const int first = lane / 8 % 2 * 8;
  const int c = lane % 8;
  float x[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float even = i == c ? 1.0f : 0.0f;
    float odd = 0.0f;
#pragma unroll
    for (int j = 0; j < i; j += 4) {
      const float4 a = *reinterpret_cast<const float4*>(&A[first + i][first + j]);
      even = fmaf(-a.x, x[j], even);
      if (j + 1 < i) {
        odd = fmaf(-a.y, x[j + 1], odd);
      }
      if (j + 2 < i) {
        even = fmaf(-a.z, x[j + 2], even);
      }
      if (j + 3 < i) {
        odd = fmaf(-a.w, x[j + 3], odd);
      }
    }
    x[i] = even + odd;
  }
  __syncwarp();
  if (lane < kBlockTokens) {  // transposed
    *reinterpret_cast<float4*>(&A[first + c][first]) = {x[0], x[1], x[2], x[3]};
    *reinterpret_cast<float4*>(&A[first + c][first + 4]) = {x[4], x[5], x[6], x[7]};
  }
  __syncwarp();
  const auto tile = [&](int row, int column) {
    return *reinterpret_cast<const float2*>(&A[row + lane / 4][column + 2 * (lane % 4)]);
  };
  const float2 X = tile(0, 0);
  const float2 Y = tile(8, 8);
  const float2 A21 = tile(8, 0);
  const SplitWord x_left = split_pair(X.x, X.y);
  const SplitWord y_left = split_pair(Y.x, Y.y);
  const SplitWord y_right = transpose(y_left);
  const float2 product = tile_product(x_left, split_pair(-A21.x, -A21.y));
  const float2 between = tile_product(split_pair(product.x, product.y), y_right);
  const SplitWord between_left = split_pair(between.x, between.y);
  inverse[0][0] = X.x;
  inverse[0][1] = X.y;
  inverse[0][2] = inverse[0][3] = 0;
  inverse[1][0] = between.x;
  inverse[1][1] = between.y;
  inverse[1][2] = Y.x;
  inverse[1][3] = Y.y;
  left = {{x_left.high, 0, between_left.high, y_left.high},
          {x_left.low, 0, between_left.low, y_left.low}};
  const SplitWord x_right = transpose(x_left);
  const SplitWord between_right = transpose(between_left);
  right = {{x_right.high, between_right.high, 0, y_right.high},
           {x_right.low, between_right.low, 0, y_right.low}};
}

/// A warp's row of blocks of T, each transposed, as results of mma: the one on the diagonal and
/// those left of it.
struct InverseRow {
  float own[2][4];
  float left[kBlocks - 1][2][4];
};

/// Row `warp` of the inverse T of A = I - N, by blocks of 16 x 16, from those of the warps before:
///     T[w, w] = A[w, w]^-1,  T[w, j] = T[w, w] (sum over j <= l < w of N[w, l] T[l, j])
/// transposed, as then every factor is there already as mma wants it: a result is a left operand,
/// and N[w, l] as it comes from the scores is a right operand, which mma takes transposed. Rows are
/// handed on in `handed`, each behind an mbarrier of its own in `handed_on`.
__device__ __forceinline__ void invert_rows(InverseRow& T, const SplitBlock (&N)[kBlocks - 1],
                                            float (*A)[kStrideBlock], HandedBlock* handed,
                                            uint64_t* handed_on, int parity, int warp, int lane) {
  const auto index = [](int l, int j) { return l * (l + 1) / 2 + j; };
  const auto hand_on = [&](const SplitBlock& x, int j) {
    HandedBlock& to = handed[index(warp, j)];
    to.high[lane] = {x.high[0], x.high[1], x.high[2], x.high[3]};
    to.low[lane] = {x.low[0], x.low[1], x.low[2], x.low[3]};
  };
  T = {};
  SplitBlock own;
  SplitBlock right;
  invert_block(T.own, own, right, A, lane);
  if (warp < kBlocks - 1) {
    hand_on(own, warp);
  }
#pragma unroll
  for (int l = 0; l < kBlocks - 1; ++l) {
    if (l < warp) {
      ptx::mbarrier_wait(handed_on + l, parity);
#pragma unroll
      for (int j = 0; j <= l; ++j) {
        const uint4 high = handed[index(l, j)].high[lane];
        const uint4 low = handed[index(l, j)].low[lane];
        add_product(T.left[j], {{high.x, high.y, high.z, high.w}, {low.x, low.y, low.z, low.w}},
                    N[l]);
      }
    } else if (l == warp) {
#pragma unroll
      for (int j = 0; j < l; ++j) {
        multiply(T.left[j], right);
        hand_on(split_block(T.left[j]), j);
      }
      ptx::mbarrier_arrive(handed_on + l);
    }
  }
  if (warp == kBlocks - 1) {
#pragma unroll
    for (int j = 0; j < kBlocks - 1; ++j) {
      multiply(T.left[j], right);
    }
  }
}

/// The exponent x of hopper_saved.h for the largest |T|.
__device__ __forceinline__ int scale_exponent(float largest) {
  return largest <= 32768.0f ? 0 : min(max(ilogbf(largest) - 14, 0), kMaxScaleExponent);
}

/// w_limit of hopper_saved.h for what the products make of a |W| of 1 at most; 64000 leaves room
/// for their roundings.
__device__ __forceinline__ float w_limit(float growth) {
  return fminf(fmaxf(64000.0f / growth, 0x1p-20f), 0x1p15f);
}

/// The largest |T| and the largest sum of |T| over a row among the warp's rows, for round_record;
/// zeros for the inverse of I that there is past the chunk's end.
template <int K>
__device__ __forceinline__ void measure_rows(PrepareShared<K>& shared, InverseRow& T, int length,
                                             int warp, int lane) {
  const int row = warp * kBlockTokens + 2 * (lane % 4);  // and + 1, + 8, + 9: columns of results
  if (length < kChunk) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      T.own[i / 4][i % 4] = row + i / 4 * 8 + i % 2 < length ? T.own[i / 4][i % 4] : 0.0f;
    }
  }
  float largest = 0;
  float sums[4] = {0, 0, 0, 0};  // of rows
  const auto count = [&](const float(&x)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float size = fabsf(x[i / 4][i % 4]);
      largest = fmaxf(largest, size);
      sums[i / 4 * 2 + i % 2] += size;
    }
  };
  count(T.own);
#pragma unroll
  for (int j = 0; j < kBlocks - 1; ++j) {
    if (j < warp) {
      count(T.left[j]);
    }
  }
  // Sums over lanes of equal lane % 4, in two steps of half as many numbers.
  const auto fold = [lane](float x, float y, int offset) {
    const bool upper = (lane & offset) != 0;
    return (upper ? y : x) + __shfl_xor_sync(kAllLanes, upper ? x : y, offset);
  };
  float largest_row = fold(fold(sums[0], sums[2], 16), fold(sums[1], sums[3], 16), 8);
  largest_row += __shfl_xor_sync(kAllLanes, largest_row, 4);
  largest = largest_of_warp(largest);
  largest_row = largest_of_warp(largest_row);
  if (lane == 0) {
    shared.largest[warp] = largest;
    shared.largest_row[warp] = largest_row;
  }
}

/// The record's T, and what PGD, g, n and w_limit get from it: the warp's rows of T to fp16, by the
/// exponent x of hopper_saved.h. Everything else is written already, T's zeros too.
template <int K>
__device__ __forceinline__ void round_record(PrepareShared<K>& shared, InverseRow& T, int thread) {
  auto& after = shared.after;
  ChunkVectors& vectors = after.vectors;
  const int warp = thread / 32;
  const int lane = thread % 32;
  const float largest = fmaxf(fmaxf(shared.largest[0], shared.largest[1]),
                              fmaxf(shared.largest[2], shared.largest[3]));
  const int exponent = scale_exponent(largest);
  const float up = exp2f(static_cast<float>(exponent));
  const float down = 1.0f / up;  // exact
  const auto store = [&](float(&x)[2][4], int block) {
    if (exponent != 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i / 4][i % 4] *= down;
      }
    }
    HalfBlock halves = pack_block(x);
#pragma unroll
    for (uint32_t& word : halves.words) {  // NaN, from infinities, counts as large
      word = ptx::least_halves(word, kLargestHalves);
    }
    store_transposed_block(after.T, halves, warp, block, lane);
  };
  store(T.own, warp);
#pragma unroll
  for (int j = 0; j < kBlocks - 1; ++j) {
    if (j < warp) {
      store(T.left[j], j);
    }
  }
  if (thread < kChunk) {
    vectors.g[thread] *= up;
    vectors.n[thread] *= up;
    if (thread == 0) {
      vectors.r_scale = up;
      const float row = fmaxf(fmaxf(shared.largest_row[0], shared.largest_row[1]),
                              fmaxf(shared.largest_row[2], shared.largest_row[3]));
      const float write = fmaxf(shared.largest_write[0], shared.largest_write[1]);
      vectors.w_limit = w_limit(down * row * fmaxf(1.0f, up * write));
    }
  }
  if (exponent != 0) {
    for (int at = thread * 4; at < ptx::kBoxBytes; at += kPrepareThreads * 4) {
      auto& word = *reinterpret_cast<uint32_t*>(after.PGD + at);
      const float2 pair = ptx::unpack<__half>(word);
      word = ptx::pack_half(pair.x * up, pair.y * up);
    }
  }
}

}  // namespace mdn::kernels::cuda::hopper
