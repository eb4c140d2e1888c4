// rotary with gradients: the kernel for 16- and 32-bit types on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// Rotates the halves of every head by position theta^(-2i/d) (mdn/kernels/rotary.h). x
/// [B, T, heads, d] of any float dtype, d even; positions [T] int64 on x's device. Returns x's
/// shape and dtype.
at::Tensor rotary(const at::Tensor& x, const at::Tensor& positions, double theta);

}  // namespace mdn::ops
