// short_conv with gradients: the fused kernels for float32 on the CPU and for 16- and 32-bit
// types on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace mdn::ops {

/// y[t, c] = silu(sum_w weight[c, 0, w] x[t - (W-1) + w, c]); x [B, T, C], weight [C, 1, W] of any
/// float dtype. Sequences start from zeros: each row of B, or, with cu_seqlens [N + 1] int64 on the
/// CPU (B = 1), each packed sequence. A bias [C] is added before the SiLU.
at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight,
                      const std::optional<at::Tensor>& cu_seqlens,
                      const std::optional<at::Tensor>& bias = std::nullopt);

/// One token of B sequences: x [B, C] -> [B, C]. state [B, W-1, C] of x's type holds each
/// sequence's last W-1 inputs, oldest first, and is advanced in place. No gradient is recorded.
at::Tensor short_conv_step(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& state,
                           const std::optional<at::Tensor>& bias = std::nullopt);

}  // namespace mdn::ops
