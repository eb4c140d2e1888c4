// What the residual blocks on CUDA share: the norm at their start.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// rms_norm of x [..., D] as rows [N, D]; weight [D] float32. No gradient is recorded.
at::Tensor rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps);

/// n: the norm's result again. d_x, n [N, D]; d_weight [D] float32.
struct NormGradient {
  at::Tensor d_x, n, d_weight;
};

/// The gradient of x in x + f(rms_norm(x)) from that of the norm's result, d_n, and that of the
/// sum, d_out.
NormGradient rms_norm_rows_backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                    const at::Tensor& d_n, const at::Tensor& d_out);

}  // namespace mdn::ops
