// What the residual blocks on CUDA share: the norm at their start.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// rms_norm of x [..., D], of `type` or float32, as rows [N, D] of `type`; weight [D] float32. No
/// gradient is recorded.
at::Tensor rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps,
                         at::ScalarType type);

/// n: the norm's result again, of d_n's type as it was. d_x [N, D] of x's type; d_weight [D]
/// float32.
struct NormGradient {
  at::Tensor d_x, n, d_weight;
};

/// The gradient of x in x + f(rms_norm(x)) from that of the norm's result, d_n, and that of the
/// sum, d_out of x's type.
NormGradient rms_norm_rows_backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                    const at::Tensor& d_n, const at::Tensor& d_out);

}  // namespace mdn::ops
