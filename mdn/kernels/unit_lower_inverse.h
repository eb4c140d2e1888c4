// unit_lower_inverse: T = (I + L)^-1 of strictly lower triangular L, by forward substitution.
// Only CUDA has a kernel; elsewhere the operator is ATen's operations.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda {
using Stream = void*;

inline constexpr int64_t kUnitLowerRows = 64;

/// L, T [matrices, kUnitLowerRows, kUnitLowerRows] float32, contiguous, at multiples of 16 bytes.
/// Of L only what is below the diagonal counts; T is written whole. Work is queued on `stream`
/// (a cudaStream_t) of the current device and nothing waits for it.
struct UnitLowerInverse {
  int64_t matrices = 0;
  const float* L = nullptr;
  float* T = nullptr;
};

void unit_lower_inverse(const UnitLowerInverse& call, Stream stream);

}  // namespace mdn::kernels::cuda
