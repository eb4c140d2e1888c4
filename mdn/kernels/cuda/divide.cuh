// Division of numbers that are 64 bits wide for the largest tensors' sake.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda {

struct Division {
  int64_t quotient, remainder;
};

/// a / b and a % b of a >= 0, b > 0: by 32 bits where both fit, which is several times cheaper.
__device__ inline Division divide(int64_t a, int64_t b) {
  if (a >> 32 == 0 && b >> 32 == 0) {
    const auto low = static_cast<uint32_t>(a), by = static_cast<uint32_t>(b);
    return {low / by, low % by};
  }
  return {a / b, a % b};
}

}  // namespace mdn::kernels::cuda
