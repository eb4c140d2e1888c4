#include "mdn/ops/rms_norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/rms_norm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// How many rows of the gate lie together: columns of wider rows hold one head of a token, or all.
int64_t heads_of(const at::Tensor& gate) {
  const int64_t D = gate.size(-1);
  return gate.dim() > 1 && !row_stride(gate, D) && row_stride(gate, gate.size(-2) * D)
             ? gate.size(-2)
             : 1;
}

int64_t gate_stride(const at::Tensor& gate, int64_t heads) {
  const int64_t together = heads * gate.size(-1);
  return row_stride(gate, together).value_or(together);
}

struct Gated {
  at::Tensor gate;  // undefined: none
  RmsNormGating gating;
  at::Tensor skip, scale;  // undefined: none

  kernels::RmsNormSkip skip_argument() const {
    return skip.defined() ? kernels::RmsNormSkip{data(skip), floats(scale)}
                          : kernels::RmsNormSkip{};
  }
  kernels::cuda::RmsNormGate argument() const {
    if (!gate.defined()) {
      return {};
    }
    const int64_t heads = heads_of(gate);
    return {
        .data = data(gate), .heads = heads, .stride = gate_stride(gate, heads), .gating = gating};
  }
};

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, double eps, const Gated& gated) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  at::Tensor y = at::empty_like(x);
  if (x.is_cuda()) {
    const DeviceScope device(x);
    kernels::cuda::rms_norm_forward({.rows = rows,
                                     .D = D,
                                     .eps = eps,
                                     .dtype = dtype_of("rms_norm", x.scalar_type()),
                                     .x = data(x),
                                     .gate = gated.argument(),
                                     .skip = gated.skip_argument(),
                                     .weight = floats(weight),
                                     .y = y.data_ptr()},
                                    device.stream());
  } else {
    kernels::cpu::rms_norm_forward(rows, D, eps, floats(x), floats(gated.gate), floats(weight),
                                   y.mutable_data_ptr<float>(), gated.gating,
                                   gated.skip_argument());
  }
  return y;
}

struct RmsNormGradients {
  at::Tensor d_x, d_weight, d_gate, d_skip, d_scale;
};

RmsNormGradients backward(const at::Tensor& x, const at::Tensor& weight, double eps,
                          const Gated& gated, const at::Tensor& d_y) {
  const int64_t D = weight.numel(), rows = x.numel() / D;
  const bool gate = gated.gate.defined();
  RmsNormGradients d{at::empty_like(x), at::empty_like(weight),
                     gate ? gradient_of(gated.gate) : at::Tensor(),
                     gated.skip.defined() ? at::empty_like(x) : at::Tensor(),
                     gated.skip.defined() ? at::empty_like(weight) : at::Tensor()};
  void* d_gate = gate ? d.d_gate.data_ptr() : nullptr;
  const auto d_skip =
      gated.skip.defined()
          ? kernels::RmsNormSkipGradient{d.d_skip.data_ptr(), d.d_scale.mutable_data_ptr<float>()}
          : kernels::RmsNormSkipGradient{};
  if (x.is_cuda()) {
    const DeviceScope device(x);
    const at::Tensor workspace =
        workspace_like(x, kernels::cuda::rms_norm_backward_workspace(rows, D));
    const auto argument = gated.argument();
    kernels::cuda::rms_norm_backward(
        {.rows = rows,
         .D = D,
         .eps = eps,
         .dtype = dtype_of("rms_norm", x.scalar_type()),
         .x = data(x),
         .gate = argument,
         .skip = gated.skip_argument(),
         .weight = floats(weight),
         .d_y = data(d_y),
         .d_x = d.d_x.data_ptr(),
         .d_gate = d_gate,
         .d_gate_stride = gate ? gate_stride(d.d_gate, argument.heads) : 0,
         .d_skip = d_skip,
         .d_weight = d.d_weight.mutable_data_ptr<float>(),
         .workspace = workspace.data_ptr()},
        device.stream());
  } else {
    const at::Tensor workspace =
        workspace_like(x, kernels::cpu::rms_norm_backward_workspace(rows, D));
    kernels::cpu::rms_norm_backward(rows, D, eps, floats(x), floats(gated.gate), floats(weight),
                                    floats(d_y), d.d_x.mutable_data_ptr<float>(),
                                    static_cast<float*>(d_gate),
                                    d.d_weight.mutable_data_ptr<float>(), workspace.data_ptr(),
                                    gated.gating, gated.skip_argument(), d_skip);
  }
  return d;
}

class FusedRmsNorm : public torch::autograd::Function<FusedRmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            const at::Tensor& weight_in, double eps,
                            const std::optional<at::Tensor>& gate_in, int64_t gating,
                            const std::optional<at::Tensor>& skip_in,
                            const std::optional<at::Tensor>& scale_in) {
    const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat).contiguous(); };
    const at::Tensor x = x_in.contiguous(), weight = wide(weight_in);
    const at::Tensor skip = skip_in ? skip_in->contiguous() : at::Tensor();
    const at::Tensor scale = scale_in ? wide(*scale_in) : at::Tensor();
    at::Tensor gate;
    if (gate_in) {
      const int64_t together = heads_of(*gate_in) * gate_in->size(-1);
      gate = row_stride(*gate_in, together) ? *gate_in : gate_in->contiguous();
    }
    ctx->save_for_backward({x, weight, gate, skip, scale});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["gating"] = gating;
    ctx->saved_data["weight_type"] = weight_in.scalar_type();
    return ops::forward(x, weight, eps, {gate, static_cast<RmsNormGating>(gating), skip, scale});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("rms_norm");
    const auto saved = ctx->get_saved_variables();
    const Gated gated{saved[2], static_cast<RmsNormGating>(ctx->saved_data["gating"].toInt()),
                      saved[3], saved[4]};
    const RmsNormGradients d = ops::backward(saved[0], saved[1], ctx->saved_data["eps"].toDouble(),
                                             gated, grads[0].contiguous());
    const auto type = ctx->saved_data["weight_type"].toScalarType();
    return {d.d_x,
            d.d_weight.to(type),
            at::Tensor(),
            d.d_gate,
            at::Tensor(),
            d.d_skip,
            d.d_scale.defined() ? d.d_scale.to(type) : at::Tensor()};
  }
};

at::Tensor composite(const at::Tensor& x, const at::Tensor& weight, double eps,
                     const std::optional<at::Tensor>& gate, RmsNormGating gating,
                     const std::optional<at::Tensor>& skip,
                     const std::optional<at::Tensor>& scale) {
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  at::Tensor u = x.to(type), factor;
  if (skip) {
    u = u + scale->to(type) * skip->to(type);
  }
  if (gate) {
    const at::Tensor g = gate->to(type);
    factor = gating == RmsNormGating::kSigmoid ? g.sigmoid() : at::silu(g);
  }
  if (gate && gating == RmsNormGating::kSiluFirst) {
    u = u * factor;
  }
  at::Tensor y = u * (u.square().mean(-1, true) + eps).rsqrt() * weight.to(type);
  if (gate && gating != RmsNormGating::kSiluFirst) {
    y = y * factor;
  }
  return y.to(x.scalar_type());
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps,
                    const std::optional<at::Tensor>& gate, RmsNormGating gating,
                    const std::optional<at::Tensor>& skip, const std::optional<at::Tensor>& scale) {
  constexpr const char* kOp = "rms_norm";
  MDN_CHECK(x.dim() >= 1 && x.numel() > 0, "{}: x is {}; it must have elements", kOp,
            shape_text(x));
  const TensorCheck check{kOp, x.device()};
  check(weight, "weight", {x.size(-1)}, weight.scalar_type());
  check(gate, "gate", x.sizes(), x.scalar_type());
  check(skip, "skip", x.sizes(), x.scalar_type());
  check(scale, "scale", {x.size(-1)}, weight.scalar_type());
  MDN_CHECK(skip.has_value() == scale.has_value() &&
                (!skip || (gate && gating == RmsNormGating::kSiluFirst)),
            "{}: a skip needs a scale and a gate that comes first", kOp);
  const bool fused = use_cpu_kernel(x)
                         ? weight.scalar_type() == at::kFloat
                         : use_cuda_kernel(x) && kernels::cuda::rms_norm_unsupported(
                                                     dtype_of(kOp, x.scalar_type()), x.size(-1))
                                                     .empty();
  return fused
             ? FusedRmsNorm::apply(x, weight, eps, gate, static_cast<int64_t>(gating), skip, scale)
             : composite(x, weight, eps, gate, gating, skip, scale);
}

}  // namespace mdn::ops
