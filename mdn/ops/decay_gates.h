// decay_gates with gradients: the fused kernel on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>

namespace mdn::ops {

/// Each [..., HV] in float32 (float64 for float64 input).
struct DecayGates {
  at::Tensor alpha, dt;
  at::Tensor beta;  // undefined without b
};

struct DecayGateLimits {
  double low = 0, high = std::numeric_limits<double>::infinity();  // of dt
  double max_beta = 1;
};

/// dt = clamp(softplus(a + dt_bias), low, high); alpha = exp(-exp(A_log) dt);
/// beta = max_beta sigmoid(b). a and b (undefined: no beta) [B, T, HV] of one dtype, A_log, dt_bias
/// [HV] of one float dtype.
DecayGates decay_gates(const at::Tensor& a, const at::Tensor& b, const at::Tensor& A_log,
                       const at::Tensor& dt_bias, const DecayGateLimits& limits = {});

}  // namespace mdn::ops
