#include "mdn/ops/momentum_gates.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "mdn/kernels/momentum_gates.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::MomentumGatesProblem problem_of(const at::Tensor& a, int64_t H, double tau,
                                         double min_log_mu) {
  const int64_t HV = a.size(-1);
  return {.tokens = a.numel() / HV,
          .H = H,
          .HV = HV,
          .dtype = dtype_of("momentum_gates", a.scalar_type()),
          .tau = tau,
          .min_log_mu = min_log_mu};
}

// x: a, b, m, e, then A_log, Mu_log, log_factor, dt_bias, mu_bias in float32; all contiguous.
kernels::MomentumGatesProjections projections_of(const variable_list& x) {
  return {
      .a = data(x[0]), .b = data(x[1]), .m = data(x[2]), .e = data(x[3]), .stride = x[0].size(-1)};
}

kernels::MomentumGatesParameters parameters_of(const variable_list& x) {
  const auto floats = [&](size_t i) { return x[i].const_data_ptr<float>(); };
  return {.A_log = floats(4),
          .Mu_log = floats(5),
          .log_factor = floats(6),
          .dt_bias = floats(7),
          .mu_bias = floats(8)};
}

class FusedMomentumGates : public torch::autograd::Function<FusedMomentumGates> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, double tau,
                               double min_log_mu) {
    variable_list x;
    for (size_t i = 0; i < inputs.size(); ++i) {
      x.push_back((i < 4 ? inputs[i] : inputs[i].to(at::kFloat)).contiguous());
    }
    ctx->save_for_backward(x);
    ctx->saved_data["tau"] = tau;
    ctx->saved_data["min_log_mu"] = min_log_mu;
    ctx->saved_data["type"] = inputs[4].scalar_type();
    variable_list y;
    for (int i = 0; i < 4; ++i) {
      y.push_back(at::empty(x[0].sizes(), x[0].options().dtype(at::kFloat)));
    }
    const DeviceScope device(x[0]);
    kernels::cuda::momentum_gates_forward(
        {.problem = problem_of(x[0], x[4].numel(), tau, min_log_mu),
         .parameters = parameters_of(x),
         .projections = projections_of(x),
         .alpha = y[0].mutable_data_ptr<float>(),
         .mu = y[1].mutable_data_ptr<float>(),
         .eta = y[2].mutable_data_ptr<float>(),
         .beta = y[3].mutable_data_ptr<float>()},
        device.stream());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("momentum_gates");
    const auto x = ctx->get_saved_variables();
    const auto problem = problem_of(x[0], x[4].numel(), ctx->saved_data["tau"].toDouble(),
                                    ctx->saved_data["min_log_mu"].toDouble());
    variable_list d_y, d;
    for (const at::Tensor& grad : grads) {
      d_y.push_back(grad.contiguous());
    }
    for (int i = 0; i < 4; ++i) {
      d.push_back(at::empty_like(x[0]));
    }
    const at::Tensor d_parameters = at::empty({5, problem.HV}, d_y[0].options());
    const DeviceScope device(x[0]);
    const at::Tensor workspace =
        workspace_like(x[0], kernels::cuda::momentum_gates_backward_workspace(problem));
    kernels::cuda::momentum_gates_backward({.problem = problem,
                                            .parameters = parameters_of(x),
                                            .projections = projections_of(x),
                                            .d_alpha = d_y[0].const_data_ptr<float>(),
                                            .d_mu = d_y[1].const_data_ptr<float>(),
                                            .d_eta = d_y[2].const_data_ptr<float>(),
                                            .d_beta = d_y[3].const_data_ptr<float>(),
                                            .d_a = d[0].data_ptr(),
                                            .d_b = d[1].data_ptr(),
                                            .d_m = d[2].data_ptr(),
                                            .d_e = d[3].data_ptr(),
                                            .d_stride = problem.HV,
                                            .d_parameters = d_parameters.mutable_data_ptr<float>(),
                                            .workspace = workspace.data_ptr()},
                                           device.stream());
    for (const at::Tensor& gradient : gate_parameter_gradients(
             d_parameters, problem.H, ctx->saved_data["type"].toScalarType())) {
      d.push_back(gradient);
    }
    d.push_back({});  // tau, min_log_mu
    d.push_back({});
    return d;
  }
};

MomentumGates composite(const GateProjections& x, const GateParameters& p, double tau,
                        std::optional<double> min_log_mu, GateCaps caps) {
  const auto type = x.a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t group = p.dt_bias.numel() / p.A_log.numel();
  const auto per_value_head = [&](const at::Tensor& parameter) {
    const at::Tensor wide = parameter.to(type);
    return (group == 1 ? wide : wide.repeat_interleave(group)).exp();
  };
  MomentumGates gates;
  if (x.m.defined()) {
    at::Tensor log_mu = -per_value_head(p.Mu_log) * at::softplus(x.m.to(type) + p.mu_bias.to(type));
    if (min_log_mu) {
      log_mu = log_mu.clamp_min(*min_log_mu);
    }
    gates.mu = log_mu.exp();
  }
  gates.eta = 1 + (x.e.to(type) / tau).tanh();
  gates.beta = x.b.to(type).sigmoid();
  gates.alpha = (-per_value_head(p.A_log) * at::softplus(x.a.to(type) + p.dt_bias.to(type))).exp();
  if (caps.alpha || caps.beta) {
    // sin² = (eta f)² / (1 + (eta f)²), cos² = 1 / (1 + (eta f)²) of theta = atan(eta f)
    const at::Tensor squared = (gates.eta * per_value_head(p.log_factor)).square();
    const at::Tensor cos2 = (1 + squared).reciprocal();
    gates.beta = caps.beta ? squared * cos2 * gates.beta : gates.beta;
    gates.alpha = caps.alpha ? cos2 * gates.alpha : gates.alpha;
  }
  return gates;
}

}  // namespace

std::array<at::Tensor, 5> gate_parameter_gradients(const at::Tensor& d_parameters, int64_t H,
                                                   at::ScalarType type) {
  const int64_t HV = d_parameters.size(1);
  std::array<at::Tensor, 5> d;
  for (int64_t i = 0; i < 5; ++i) {
    const at::Tensor row = d_parameters[i];
    d[i] = (i < 3 && HV != H ? row.view({H, HV / H}).sum(1) : row).to(type);
  }
  return d;
}

MomentumGates momentum_gates(const GateProjections& x, const GateParameters& p, double tau,
                             std::optional<double> min_log_mu, GateCaps caps) {
  constexpr const char* kOp = "momentum_gates";
  const int64_t HV = x.a.size(-1), H = p.A_log.numel();
  const TensorCheck check{kOp, x.a.device()};
  check(x.b, "b", x.a.sizes(), x.a.scalar_type());
  check(x.e, "e", x.a.sizes(), x.a.scalar_type());
  const auto type = p.A_log.scalar_type();
  check(p.dt_bias, "dt_bias", {HV}, type);
  if (x.m.defined()) {
    check(x.m, "m", x.a.sizes(), x.a.scalar_type());
    check(p.Mu_log, "Mu_log", {H}, type);
    check(p.mu_bias, "mu_bias", {HV}, type);
  }
  if (caps.alpha || caps.beta) {
    check(p.log_factor, "log_factor", {H}, type);
  }
  MDN_CHECK(HV % H == 0, "{}: there are {} value heads, which must be a multiple of the {} heads",
            kOp, HV, H);
  if (!caps.alpha || !caps.beta || !use_cuda_kernel(x.a)) {
    return composite(x, p, tau, min_log_mu, caps);
  }
  // Without momentum the kernel makes a mu all the same, of what is at hand, and it is dropped.
  const bool momentum = x.m.defined();
  const variable_list inputs = {x.a,          x.b,       momentum ? x.m : x.a.detach(),
                                x.e,          p.A_log,   momentum ? p.Mu_log : p.A_log.detach(),
                                p.log_factor, p.dt_bias, momentum ? p.mu_bias : p.dt_bias.detach()};
  const auto y = FusedMomentumGates::apply(
      at::TensorList(inputs), tau, min_log_mu.value_or(-std::numeric_limits<double>::infinity()));
  return {y[0], momentum ? y[1] : at::Tensor(), y[2], y[3]};
}

}  // namespace mdn::ops
