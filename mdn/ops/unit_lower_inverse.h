// unit_lower_inverse with gradients: the kernel for float32 matrices of 64 rows on CUDA, ATen's
// triangular solver elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// (I + L)^-1 for strictly lower triangular L [m, n, n]; what L has on and above its diagonal is
/// not looked at and gets no gradient.
at::Tensor unit_lower_inverse(const at::Tensor& L);

}  // namespace mdn::ops
