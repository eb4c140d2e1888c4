#include "mdn/ops/swiglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/swiglu.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor forward(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor y = at::empty_like(a);
  if (a.is_cuda()) {
    const DeviceScope device(a);
    kernels::cuda::swiglu_forward({.rows = 1,
                                   .columns = a.numel(),
                                   .dtype = dtype_of("swiglu", a.scalar_type()),
                                   .a = data(a),
                                   .b = data(b),
                                   .stride = a.numel(),
                                   .y = y.data_ptr()},
                                  device.stream());
  } else {
    kernels::cpu::swiglu_forward(a.numel(), a.const_data_ptr<float>(), b.const_data_ptr<float>(),
                                 y.mutable_data_ptr<float>());
  }
  return y;
}

variable_list backward(const at::Tensor& a, const at::Tensor& b, const at::Tensor& d_y) {
  at::Tensor d_a = at::empty_like(a), d_b = at::empty_like(b);
  if (a.is_cuda()) {
    const DeviceScope device(a);
    kernels::cuda::swiglu_backward({.rows = 1,
                                    .columns = a.numel(),
                                    .dtype = dtype_of("swiglu", a.scalar_type()),
                                    .a = data(a),
                                    .b = data(b),
                                    .stride = a.numel(),
                                    .d_y = data(d_y),
                                    .d_a = d_a.data_ptr(),
                                    .d_b = d_b.data_ptr(),
                                    .d_stride = a.numel()},
                                   device.stream());
  } else {
    kernels::cpu::swiglu_backward(a.numel(), a.const_data_ptr<float>(), b.const_data_ptr<float>(),
                                  d_y.const_data_ptr<float>(), d_a.mutable_data_ptr<float>(),
                                  d_b.mutable_data_ptr<float>());
  }
  return {d_a, d_b};
}

class FusedSwiglu : public torch::autograd::Function<FusedSwiglu> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& a_in, const at::Tensor& b_in) {
    const at::Tensor a = a_in.contiguous(), b = b_in.contiguous();
    ctx->save_for_backward({a, b});
    return ops::forward(a, b);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("swiglu");
    const auto saved = ctx->get_saved_variables();
    return ops::backward(saved[0], saved[1], grads[0].contiguous());
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b) {
  TensorCheck{"swiglu", a.device()}(b, "b", a.sizes(), a.scalar_type());
  return use_cpu_kernel(a) || use_cuda_kernel(a) ? FusedSwiglu::apply(a, b) : at::silu(a) * b;
}

}  // namespace mdn::ops
