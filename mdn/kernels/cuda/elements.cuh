// Elements of tensors whose type is known at run time, and sums over lanes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

/// Element `index` as float32. The branch is the same for a whole grid.
__device__ inline float load_element(const void* tensor, int64_t index, DType dtype) {
  if (dtype == DType::kBFloat16) {
    return __bfloat162float(static_cast<const __nv_bfloat16*>(tensor)[index]);
  }
  if (dtype == DType::kFloat16) {
    return __half2float(static_cast<const __half*>(tensor)[index]);
  }
  return static_cast<const float*>(tensor)[index];
}

/// Rounds to nearest even.
__device__ inline void store_element(void* tensor, int64_t index, DType dtype, float value) {
  if (dtype == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(tensor)[index] = __float2bfloat16(value);
  } else if (dtype == DType::kFloat16) {
    static_cast<__half*>(tensor)[index] = __float2half(value);
  } else {
    static_cast<float*>(tensor)[index] = value;
  }
}

/// Sum over each group of kLanes neighbouring lanes, the same bits in all of them.
template <int kLanes>
__device__ inline float sum_of_lanes(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    x += __shfl_xor_sync(kAllLanes, x, offset);
  }
  return x;
}

/// One step of transposed_sums: lanes with bit kHalf keep the upper half of the values.
template <int kHalf, int kValues>
__device__ inline void halve_values(float (&values)[kValues]) {
  const bool upper = (threadIdx.x & kHalf) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float low = values[i];
    const float high = values[i + kHalf];
    values[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, kHalf);
  }
  if constexpr (kHalf > 1) {
    halve_values<kHalf / 2>(values);
  }
}

/// The largest |x| of this thread; four chains, as one would wait for itself.
template <int kCount>
__device__ __forceinline__ float largest_of(const float (&x)[kCount]) {
  float largest[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    largest[i % 4] = fmaxf(largest[i % 4], fabsf(x[i]));
  }
  return fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
}

/// The largest of a warp's non-negative numbers, in every lane.
__device__ inline float largest_of_warp(float x) {
  return __uint_as_float(__reduce_max_sync(0xFFFFFFFFU, __float_as_uint(x)));
}

/// Sums kValues values (16 or 32) over the warp at once: lane i gets that of values[i % kValues].
/// Halving the values at each step takes 31 shuffles for 32 sums, not 160. Destroys `values`.
template <int kValues>
__device__ inline float transposed_sums(float (&values)[kValues]) {
  static_assert(kValues == 16 || kValues == 32);
  if constexpr (kValues == 16) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      values[i] += __shfl_xor_sync(kAllLanes, values[i], 16);
    }
  }
  halve_values<kValues / 2>(values);
  return values[0];
}

}  // namespace mdn::kernels::cuda
