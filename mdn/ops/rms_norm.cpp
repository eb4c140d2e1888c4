#include "mdn/ops/rms_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/rms_norm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const float* floats(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr<float>() : nullptr;
}

class Fused : public torch::autograd::Function<Fused> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            const at::Tensor& weight_in, double eps,
                            const std::optional<at::Tensor>& gate_in) {
    const at::Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    const at::Tensor gate = gate_in ? gate_in->contiguous() : at::Tensor();
    ctx->save_for_backward({x, weight, gate});
    ctx->saved_data["eps"] = eps;
    const int64_t D = weight.numel();
    at::Tensor y = at::empty_like(x);
    kernels::cpu::rms_norm_forward(x.numel() / D, D, eps, floats(x), floats(gate), floats(weight),
                                   y.mutable_data_ptr<float>());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("rms_norm");
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &gate = saved[2];
    const int64_t D = weight.numel(), rows = x.numel() / D;
    const at::Tensor d_y = grads[0].contiguous();
    at::Tensor d_x = at::empty_like(x), d_weight = at::empty_like(weight), d_gate;
    if (gate.defined()) {
      d_gate = at::empty_like(gate);
    }
    const at::Tensor workspace = at::empty(
        {static_cast<int64_t>(kernels::cpu::rms_norm_backward_workspace(rows, D))}, at::kByte);
    kernels::cpu::rms_norm_backward(rows, D, ctx->saved_data["eps"].toDouble(), floats(x),
                                    floats(gate), floats(weight), floats(d_y),
                                    d_x.mutable_data_ptr<float>(),
                                    gate.defined() ? d_gate.mutable_data_ptr<float>() : nullptr,
                                    d_weight.mutable_data_ptr<float>(), workspace.data_ptr());
    return {d_x, d_weight, at::Tensor(), d_gate};
  }
};

at::Tensor composite(const at::Tensor& x, const at::Tensor& weight, double eps,
                     const std::optional<at::Tensor>& gate) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor wide = x.to(type);
  at::Tensor y = wide * (wide.square().mean(-1, true) + eps).rsqrt() * weight.to(type);
  if (gate) {
    y = y * gate->to(type).sigmoid();
  }
  return y.to(x.scalar_type());
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    const std::optional<at::Tensor>& gate) {
  constexpr const char* kOp = "rms_norm";
  MDN_CHECK(x.dim() >= 1 && x.numel() > 0, "{}: x is {}; it must have elements", kOp,
            shape_text(x));
  const TensorCheck check{kOp, x.device()};
  check(weight, "weight", {x.size(-1)}, weight.scalar_type());
  check(gate, "gate", x.sizes(), x.scalar_type());
  return use_cpu_kernel(x) && weight.scalar_type() == at::kFloat
             ? Fused::apply(x, weight, eps, gate)
             : composite(x, weight, eps, gate);
}

}  // namespace mdn::ops
