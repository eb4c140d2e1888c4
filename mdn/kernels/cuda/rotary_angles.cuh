// Angles of rotary positions, reduced in float64 so that their error does not grow with the
// position.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "mdn/kernels/rotary.h"

namespace mdn::kernels::cuda {

/// of[i] = theta^(-2i/d) / pi: angles in units of pi.
struct RotaryFrequencies {
  double of[kRotaryMaxHeadDim / 2];
};

inline RotaryFrequencies rotary_frequencies(double theta, int64_t d) {
  RotaryFrequencies frequencies{};
  for (int64_t i = 0; i < d / 2; ++i) {
    frequencies.of[i] =
        std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(d)) / std::numbers::pi;
  }
  return frequencies;
}

__device__ inline void rotary_angle(double position, double frequency, float& sine, float& cosine) {
  const double halfturns = position * frequency;
  sincospif(static_cast<float>(halfturns - 2 * rint(halfturns / 2)), &sine, &cosine);
}

}  // namespace mdn::kernels::cuda
