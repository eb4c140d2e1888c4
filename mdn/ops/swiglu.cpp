#include "mdn/ops/swiglu.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/swiglu.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class Fused : public torch::autograd::Function<Fused> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& a_in, const at::Tensor& b_in) {
    const at::Tensor a = a_in.contiguous(), b = b_in.contiguous();
    ctx->save_for_backward({a, b});
    at::Tensor y = at::empty_like(a);
    kernels::cpu::swiglu_forward(a.numel(), a.const_data_ptr<float>(), b.const_data_ptr<float>(),
                                 y.mutable_data_ptr<float>());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("swiglu");
    const auto saved = ctx->get_saved_variables();
    const at::Tensor d_y = grads[0].contiguous();
    at::Tensor d_a = at::empty_like(saved[0]), d_b = at::empty_like(saved[1]);
    kernels::cpu::swiglu_backward(d_a.numel(), saved[0].const_data_ptr<float>(),
                                  saved[1].const_data_ptr<float>(), d_y.const_data_ptr<float>(),
                                  d_a.mutable_data_ptr<float>(), d_b.mutable_data_ptr<float>());
    return {d_a, d_b};
  }
};

}  // namespace

at::Tensor swiglu(const at::Tensor& a, const at::Tensor& b) {
  TensorCheck{"swiglu", a.device()}(b, "b", a.sizes(), a.scalar_type());
  return use_cpu_kernel(a) ? Fused::apply(a, b) : at::silu(a) * b;
}

}  // namespace mdn::ops
