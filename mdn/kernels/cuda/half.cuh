// The end of float16's range: what passes it is stored as its largest number, never as infinity.
#pragma once

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {

inline constexpr float kLargestHalf = 65504.0f;

/// x, or ±65504 beyond it; a NaN stays one.
__device__ inline float within_half(float x) {
  return fabsf(x) > kLargestHalf ? copysignf(kLargestHalf, x) : x;
}

/// x as it is stored as a number of `dtype`, but for the rounding.
__device__ inline float within_range(float x, DType dtype) {
  return dtype == DType::kFloat16 ? within_half(x) : x;
}

}  // namespace mdn::kernels::cuda
