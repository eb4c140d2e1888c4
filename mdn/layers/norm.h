// RMSNorm, plain and gated. Computed in float32 (float64 for float64 inputs), returned in x's
// dtype.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::layers {

/// x / sqrt(mean(x²) + eps) * weight over the last dimension. x [..., D], weight [D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// rms_norm(x, weight, eps) * sigmoid(gate): weight before the gate. x, gate [..., V], weight [V].
at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                          double eps);

}  // namespace mdn::layers
