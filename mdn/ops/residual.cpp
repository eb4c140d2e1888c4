#include "mdn/ops/residual.h"

#include <ATen/ATen.h>

#include "mdn/kernels/rms_norm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {

at::Tensor rms_norm_rows(const at::Tensor& x, const at::Tensor& weight, double eps,
                         at::ScalarType type) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  at::Tensor n = at::empty({rows, D}, x.options().dtype(type));
  const DeviceScope device(x);
  kernels::cuda::rms_norm_forward({.rows = rows,
                                   .D = D,
                                   .eps = eps,
                                   .dtype = dtype_of("rms_norm", type),
                                   .float_x = x.scalar_type() == at::kFloat,
                                   .x = data(x),
                                   .gate = {},
                                   .weight = weight.const_data_ptr<float>(),
                                   .y = n.data_ptr()},
                                  device.stream());
  return n;
}

NormGradient rms_norm_rows_backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                                    const at::Tensor& d_n, const at::Tensor& d_out) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  NormGradient d{at::empty_like(d_out), at::empty_like(d_n), at::empty_like(weight)};
  const DeviceScope device(x);
  const at::Tensor workspace =
      workspace_like(x, kernels::cuda::rms_norm_backward_workspace(rows, D));
  kernels::cuda::rms_norm_backward({.rows = rows,
                                    .D = D,
                                    .eps = eps,
                                    .dtype = dtype_of("rms_norm", d_n.scalar_type()),
                                    .float_x = x.scalar_type() == at::kFloat,
                                    .x = data(x),
                                    .gate = {},
                                    .weight = weight.const_data_ptr<float>(),
                                    .d_y = data(d_n),
                                    .add = data(d_out),
                                    .d_x = d.d_x.data_ptr(),
                                    .y = d.n.data_ptr(),
                                    .d_weight = d.d_weight.mutable_data_ptr<float>(),
                                    .workspace = workspace.data_ptr()},
                                   device.stream());
  return d;
}

}  // namespace mdn::ops
