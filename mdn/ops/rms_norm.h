// rms_norm with gradients: the fused kernels for float32 on the CPU and for 16- and 32-bit
// types on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "mdn/kernels/rms_norm.h"

namespace mdn::ops {

using kernels::RmsNormGating;

/// x / sqrt(mean(x²) + eps) * weight over the last dimension, gated where a gate is given: times
/// sigmoid(gate) or silu(gate), or the norm of x silu(gate), where a skip and its scale make x to
/// x + scale skip (mdn/kernels/rms_norm.h). x, gate, skip [..., D], weight, scale [D] of any float
/// dtype; computed in float32 (float64 for float64 x), returned in x's dtype.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    const std::optional<at::Tensor>& gate = std::nullopt,
                    RmsNormGating gating = RmsNormGating::kSigmoid,
                    const std::optional<at::Tensor>& skip = std::nullopt,
                    const std::optional<at::Tensor>& scale = std::nullopt);

}  // namespace mdn::ops
