// rotary: rotates the halves of every head by the token's position. With i < d/2 and
// angle = position theta^(-2i/d),
//
//     y[i]       = x[i] cos(angle) - x[i + d/2] sin(angle)
//     y[i + d/2] = x[i] sin(angle) + x[i + d/2] cos(angle)
//
// The gradient is the rotation by the negative angle. Only CUDA has a kernel; elsewhere the
// operator is ATen's operations.
#pragma once

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {
using Stream = void*;

inline constexpr int64_t kRotaryMaxHeadDim = 256;

/// x, y [rows, T, heads, d], contiguous, of one 16- or 32-bit dtype; d even, at most
/// kRotaryMaxHeadDim. Angles are reduced in float64, so that their error does not grow with the
/// position. Work is queued on `stream` (a cudaStream_t) of the current device; nothing waits.
struct Rotary {
  int64_t rows = 0;
  int64_t T = 0;
  int64_t heads = 0;
  int64_t d = 0;
  DType dtype = DType::kBFloat16;
  double theta = 10000;
  bool backward = false;               // by the negative angle
  const int64_t* positions = nullptr;  // [T]
  const void* x = nullptr;
  void* y = nullptr;
};

void rotary(const Rotary& call, Stream stream);

}  // namespace mdn::kernels::cuda
