// Prepare (hopper_prepare.cuh), steps 3 and 4: the inverse of A = I + L D in shared memory, fp32,
// and its rounding to the record's fp16.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_shared.cuh"
#include "mdn/kernels/cuda/parts/tile.cuh"
#include "mdn/kernels/cuda/ptx/convert.cuh"

namespace mdn::kernels::cuda::hopper {

/// Inverts the 16 x 16 unit lower triangular diagonal block at `first` in place, one warp, lane c
/// (of 16) owning column c:  x_i = [i == c] - sum over j < i of A[i, j] x_j
__device__ __forceinline__ void invert_block(float (*A)[kStrideA], int first, int lane) {
  const int c = lane % kBlockTokens;
  float x[kBlockTokens];
#pragma unroll
  for (int i = 0; i < kBlockTokens; ++i) {
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
  if (lane < kBlockTokens) {
#pragma unroll
    for (int i = 0; i < kBlockTokens; ++i) {
      A[first + i][first + c] = x[i];
    }
  }
}

/// out = left * right, fp32, for two rows and four columns of this thread, over k_begin <= k <
/// k_end, multiples of 8.
__device__ __forceinline__ void small_product(float4 (&out)[2], const float (*A)[kStrideA],
                                              int left_row, int left_column, int right_row,
                                              int right_column, int row, int column, int k_begin,
                                              int k_end) {
  out[0] = out[1] = {0, 0, 0, 0};
  for (int begin = k_begin; begin < k_end; begin += 8) {
#pragma unroll
    for (int k = begin; k < begin + 8; k += 4) {
      float4 left[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        left[r] = *reinterpret_cast<const float4*>(&A[left_row + row + r][left_column + k]);
      }
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        const float4 right =
            *reinterpret_cast<const float4*>(&A[right_row + k + kk][right_column + column]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float l = kk == 0   ? left[r].x
                          : kk == 1 ? left[r].y
                          : kk == 2 ? left[r].z
                                    : left[r].w;
          out[r].x = fmaf(l, right.x, out[r].x);
          out[r].y = fmaf(l, right.y, out[r].y);
          out[r].z = fmaf(l, right.z, out[r].z);
          out[r].w = fmaf(l, right.w, out[r].w);
        }
      }
    }
  }
}

__device__ __forceinline__ void store_product(float (*A)[kStrideA], int row, int column,
                                              const float4 (&x)[2], float sign) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    *reinterpret_cast<float4*>(&A[row + r][column]) = {sign * x[r].x, sign * x[r].y, sign * x[r].z,
                                                       sign * x[r].w};
  }
}

/// Merges the inverses of diagonal blocks of kSize at `first` and first + kSize, in place of A21:
///     X21 = -X22 (A21 X11)
/// by kSize / 8 warps, this one being `warp`. Of the triangular factors only the 8-wide strips that
/// hold anything are multiplied: a warp owns 8 columns of the first product and 8 rows of the
/// second. The whole block meets at the barriers.
template <int kSize>
__device__ __forceinline__ void merge_blocks(float (*A)[kStrideA], int first, int warp, int lane) {
  const int second = first + kSize;
  const bool works = lane < kSize;  // two rows by four columns a lane
  float4 out[2];
  const int row1 = lane / 2 * 2;
  const int column1 = 8 * warp + lane % 2 * 4;
  if (works) {
    small_product(out, A, second, first, first, first, row1, column1, 8 * warp, kSize);
  }
  __syncthreads();
  if (works) {
    store_product(A, second + row1, first + column1, out, 1.0f);
  }
  __syncthreads();
  const int row2 = 8 * warp + lane / (kSize / 4) * 2;
  const int column2 = lane % (kSize / 4) * 4;
  if (works) {
    small_product(out, A, second, second, second, first, row2, column2, 0, 8 * warp + 8);
  }
  __syncthreads();
  if (works) {
    store_product(A, second + row2, first + column2, out, -1.0f);
  }
  __syncthreads();
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

/// The record's T and PGD, and what g, n and w_limit get from them: the inverse in A to fp16 in its
/// place, by the exponent x of hopper_saved.h. The whole block; vectors are written already.
template <int K>
__device__ __forceinline__ void round_record(PrepareShared<K>& shared, int length, int thread) {
  auto& after = shared.after;
  ChunkVectors& vectors = after.vectors;
  const int warp = thread / 32;
  float4 rows[4][2];  // 8 columns of 4 rows, half of the lanes the upper 4 first: no bank conflicts
  const int upper = thread / 4 % 2;
  float largest = 0;
  float largest_row = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i;
    float sum = 0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float4 x =
          *reinterpret_cast<const float4*>(&after.A[row][thread % 8 * 8 + 4 * (half ^ upper)]);
      if (row >= length) {
        x = {0, 0, 0, 0};
      }
      rows[i][half] = x;
      largest = fmaxf(largest, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)),  //
                                     fmaxf(fabsf(x.z), fabsf(x.w))));
      sum += (fabsf(x.x) + fabsf(x.y)) + (fabsf(x.z) + fabsf(x.w));
    }
    largest_row = fmaxf(largest_row, sum_of_lanes<8>(sum));
  }
  largest = largest_of_warp(largest);
  largest_row = largest_of_warp(largest_row);
  if (thread % 32 == 0) {
    shared.largest[warp] = largest;
    shared.largest_row[warp] = largest_row;
  }
  __syncthreads();  // A is read: T takes its place
  largest = fmaxf(fmaxf(shared.largest[0], shared.largest[1]),
                  fmaxf(shared.largest[2], shared.largest[3]));
  const int exponent = scale_exponent(largest);
  const float up = exp2f(static_cast<float>(exponent));
  const float down = 1.0f / up;  // exact
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread / 8 + 16 * i;
    const auto word = [down](float low, float high) {  // NaN, from infinities, counts as large
      return ptx::pack_half(fmaxf(fminf(low * down, kLargestHalf), -kLargestHalf),
                            fmaxf(fminf(high * down, kLargestHalf), -kLargestHalf));
    };
    const float4 x = rows[i][0];
    const float4 y = rows[i][1];
    const uint2 first = {word(x.x, x.y), word(x.z, x.w)};
    const uint2 second = {word(y.x, y.y), word(y.z, y.w)};
    const uint2 low = upper == 0 ? first : second;
    const uint2 high = upper == 0 ? second : first;
    *reinterpret_cast<uint4*>(after.T + parts::box_offset(row, thread % 8 * 8)) = {low.x, low.y,
                                                                                   high.x, high.y};
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
