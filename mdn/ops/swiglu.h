// swiglu with gradients: the fused kernels for float32 on the CPU and for 16- and 32-bit
// types on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// silu(a) * b; a, b of one shape and dtype.
at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b);

}  // namespace mdn::ops
