// rms_norm with gradients: the fused kernels for float32 on the CPU and for 16- and 32-bit
// types on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace mdn::ops {

/// x / sqrt(mean(x²) + eps) * weight over the last dimension, times sigmoid(gate) where given.
/// x, gate [..., D], weight [D] of any float dtype; computed in float32 (float64 for float64 x),
/// returned in x's dtype.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    const std::optional<at::Tensor>& gate = std::nullopt);

}  // namespace mdn::ops
