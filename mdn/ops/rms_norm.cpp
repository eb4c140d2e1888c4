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

const void* pointer(const at::Tensor& x) {
  return x.defined() ? x.const_data_ptr() : nullptr;
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps,
                   const at::Tensor& gate) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  at::Tensor y = at::empty_like(x);
  if (x.is_cuda()) {
    const DeviceScope device(x);
    kernels::cuda::rms_norm_forward({.rows = rows,
                                     .D = D,
                                     .eps = eps,
                                     .dtype = dtype_of("rms_norm", x.scalar_type()),
                                     .x = data(x),
                                     .gate = {.data = pointer(gate), .stride = D},
                                     .weight = floats(weight),
                                     .y = y.data_ptr()},
                                    device.stream());
  } else {
    kernels::cpu::rms_norm_forward(rows, D, eps, floats(x), floats(gate), floats(weight),
                                   y.mutable_data_ptr<float>());
  }
  return y;
}

struct Gradients {
  at::Tensor d_x, d_weight, d_gate;
};

Gradients backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                   const at::Tensor& gate, const at::Tensor& d_y) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  Gradients d{at::empty_like(x), at::empty_like(weight),
              gate.defined() ? at::empty_like(gate) : at::Tensor()};
  void* d_gate = gate.defined() ? d.d_gate.data_ptr() : nullptr;
  if (x.is_cuda()) {
    const DeviceScope device(x);
    const at::Tensor workspace =
        workspace_like(x, kernels::cuda::rms_norm_backward_workspace(rows, D));
    kernels::cuda::rms_norm_backward({.rows = rows,
                                      .D = D,
                                      .eps = eps,
                                      .dtype = dtype_of("rms_norm", x.scalar_type()),
                                      .x = data(x),
                                      .gate = {.data = pointer(gate), .stride = D},
                                      .weight = floats(weight),
                                      .d_y = data(d_y),
                                      .d_x = d.d_x.data_ptr(),
                                      .d_gate = d_gate,
                                      .d_gate_stride = D,
                                      .d_weight = d.d_weight.mutable_data_ptr<float>(),
                                      .workspace = workspace.data_ptr()},
                                     device.stream());
  } else {
    const at::Tensor workspace =
        workspace_like(x, kernels::cpu::rms_norm_backward_workspace(rows, D));
    kernels::cpu::rms_norm_backward(rows, D, eps, floats(x), floats(gate), floats(weight),
                                    floats(d_y), d.d_x.mutable_data_ptr<float>(),
                                    static_cast<float*>(d_gate),
                                    d.d_weight.mutable_data_ptr<float>(), workspace.data_ptr());
  }
  return d;
}

class FusedRmsNorm : public torch::autograd::Function<FusedRmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            const at::Tensor& weight_in, double eps,
                            const std::optional<at::Tensor>& gate_in) {
    const at::Tensor x = x_in.contiguous(), weight = weight_in.to(at::kFloat).contiguous();
    const at::Tensor gate = gate_in ? gate_in->contiguous() : at::Tensor();
    ctx->save_for_backward({x, weight, gate});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["weight_type"] = weight_in.scalar_type();
    return ops::forward(x, weight, eps, gate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("rms_norm");
    const auto saved = ctx->get_saved_variables();
    const Gradients d = ops::backward(saved[0], saved[1], ctx->saved_data["eps"].toDouble(),
                                      saved[2], grads[0].contiguous());
    return {d.d_x, d.d_weight.to(ctx->saved_data["weight_type"].toScalarType()), at::Tensor(),
            d.d_gate};
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
  const bool fused = use_cpu_kernel(x)
                         ? weight.scalar_type() == at::kFloat
                         : use_cuda_kernel(x) && kernels::cuda::rms_norm_unsupported(
                                                     dtype_of(kOp, x.scalar_type()), x.size(-1))
                                                     .empty();
  return fused ? FusedRmsNorm::apply(x, weight, eps, gate) : composite(x, weight, eps, gate);
}

}  // namespace mdn::ops
