// swiglu with gradients: the fused kernel for float32 on the CPU, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// silu(a) * b; a, b of one shape and dtype.
at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b);

}  // namespace mdn::ops
