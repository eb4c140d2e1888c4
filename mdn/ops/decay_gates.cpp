#include "mdn/ops/decay_gates.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/decay_gates.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// x [B, T, HV] as it lies where a token's heads are neighbours and tokens follow one another at
/// one distance, else contiguous.
at::Tensor in_rows(const at::Tensor& x) {
  const bool neighbours = x.stride(2) == 1 || x.size(2) == 1;
  const bool follow = x.size(0) == 1 || x.size(1) == 1 || x.stride(0) == x.size(1) * x.stride(1);
  return neighbours && follow ? x : x.contiguous();
}

int64_t token_stride(const at::Tensor& x) {
  return !x.defined() ? 0 : x.size(1) > 1 ? x.stride(1) : x.stride(0);
}

// x: a, b (or undefined), then A_log, dt_bias in float32.
kernels::cuda::DecayGatesProblem decay_problem(const variable_list& x,
                                               const DecayGateLimits& limits) {
  const at::Tensor &a = x[0], &b = x[1];
  return {.tokens = a.size(0) * a.size(1),
          .HV = a.size(2),
          .dtype = dtype_of("decay_gates", a.scalar_type()),
          .low = limits.low,
          .high = limits.high,
          .max_beta = limits.max_beta,
          .A_log = floats(x[2]),
          .dt_bias = floats(x[3]),
          .a = data(a),
          .a_stride = token_stride(a),
          .b = b.defined() ? data(b) : nullptr,
          .b_stride = token_stride(b)};
}

class FusedDecayGates : public torch::autograd::Function<FusedDecayGates> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& a,
                               const std::optional<at::Tensor>& b, const at::Tensor& A_log,
                               const at::Tensor& dt_bias, const DecayGateLimits& limits) {
    const variable_list x = {in_rows(a), b ? in_rows(*b) : at::Tensor(),
                             A_log.to(at::kFloat).contiguous(),
                             dt_bias.to(at::kFloat).contiguous()};
    ctx->save_for_backward(x);
    ctx->saved_data["low"] = limits.low;
    ctx->saved_data["high"] = limits.high;
    ctx->saved_data["max_beta"] = limits.max_beta;
    ctx->saved_data["type"] = A_log.scalar_type();
    ctx->set_materialize_grads(false);
    variable_list y;
    for (int i = 0; i < (b ? 3 : 2); ++i) {
      y.push_back(at::empty(a.sizes(), a.options().dtype(at::kFloat)));
    }
    const DeviceScope device(a);
    kernels::cuda::decay_gates_forward({.problem = decay_problem(x, limits),
                                        .alpha = y[0].mutable_data_ptr<float>(),
                                        .dt = y[1].mutable_data_ptr<float>(),
                                        .beta = b ? y[2].mutable_data_ptr<float>() : nullptr},
                                       device.stream());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("decay_gates");
    const auto x = ctx->get_saved_variables();
    const auto problem = decay_problem(x, {.low = ctx->saved_data["low"].toDouble(),
                                           .high = ctx->saved_data["high"].toDouble(),
                                           .max_beta = ctx->saved_data["max_beta"].toDouble()});
    variable_list d_y(3);
    for (size_t i = 0; i < grads.size(); ++i) {
      d_y[i] = grads[i].defined() ? grads[i].contiguous() : grads[i];
    }
    const at::Tensor d_a = gradient_of(x[0]), d_b = x[1].defined() ? gradient_of(x[1]) : x[1];
    const at::Tensor d_parameters = at::empty({2, problem.HV}, x[2].options());
    const DeviceScope device(x[0]);
    const at::Tensor workspace =
        workspace_like(x[0], kernels::cuda::decay_gates_backward_workspace(problem));
    kernels::cuda::decay_gates_backward({.problem = problem,
                                         .d_alpha = floats(d_y[0]),
                                         .d_dt = floats(d_y[1]),
                                         .d_beta = floats(d_y[2]),
                                         .d_a = d_a.data_ptr(),
                                         .d_a_stride = token_stride(d_a),
                                         .d_b = d_b.defined() ? d_b.data_ptr() : nullptr,
                                         .d_b_stride = token_stride(d_b),
                                         .d_parameters = d_parameters.mutable_data_ptr<float>(),
                                         .workspace = workspace.data_ptr()},
                                        device.stream());
    const auto type = ctx->saved_data["type"].toScalarType();
    return {d_a, d_b, d_parameters[0].to(type), d_parameters[1].to(type), {}};
  }
};

DecayGates decay_gates_of_operations(const at::Tensor& a, const at::Tensor& b,
                                     const at::Tensor& A_log, const at::Tensor& dt_bias,
                                     const DecayGateLimits& limits) {
  const auto type = a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor dt = at::softplus(a.to(type) + dt_bias.to(type)).clamp(limits.low, limits.high);
  DecayGates gates{.alpha = (-A_log.to(type).exp() * dt).exp(), .dt = dt, .beta = {}};
  if (b.defined()) {
    const at::Tensor beta = b.to(type).sigmoid();
    gates.beta = limits.max_beta == 1 ? beta : limits.max_beta * beta;
  }
  return gates;
}

}  // namespace

DecayGates decay_gates(const at::Tensor& a, const at::Tensor& b, const at::Tensor& A_log,
                       const at::Tensor& dt_bias, const DecayGateLimits& limits) {
  constexpr const char* kOp = "decay_gates";
  MDN_CHECK(a.dim() == 3, "{}: a must be [B, T, HV], got {}", kOp, shape_text(a));
  const TensorCheck check{kOp, a.device()};
  if (b.defined()) {
    check(b, "b", a.sizes(), a.scalar_type());
  }
  check(A_log, "A_log", {a.size(2)}, A_log.scalar_type());
  check(dt_bias, "dt_bias", {a.size(2)}, A_log.scalar_type());
  if (!use_cuda_kernel(a)) {
    return decay_gates_of_operations(a, b, A_log, dt_bias, limits);
  }
  const auto y = FusedDecayGates::apply(a, b.defined() ? std::optional(b) : std::nullopt, A_log,
                                        dt_bias, limits);
  return {y[0], y[1], b.defined() ? y[2] : at::Tensor()};
}

}  // namespace mdn::ops
