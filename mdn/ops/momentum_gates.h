// momentum_gates with gradients: the fused kernel on CUDA, ATen's operations elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>

namespace mdn::ops {

/// The four gates of momentum_delta_rule, each [..., HV] in float32 (float64 for float64 input).
struct MomentumGates {
  at::Tensor alpha, mu, eta, beta;
};

/// What a token is projected to, each [..., HV] of one dtype. Undefined m: a layer without
/// momentum, whose mu is undefined and which has no Mu_log and mu_bias.
struct GateProjections {
  at::Tensor a, b, m, e;
};

/// A_log, Mu_log, log_factor [H], dt_bias, mu_bias [HV], HV a multiple of H.
struct GateParameters {
  at::Tensor A_log, Mu_log, log_factor, dt_bias, mu_bias;
};

/// Whether alpha and beta are held below cos² and sin². Without one, its factor in the formula is
/// 1; without either there is no log_factor.
struct GateCaps {
  bool alpha = true, beta = true;
};

/// With f = exp(log_factor), and A_log, Mu_log, log_factor of value head j being entry j / (HV/H):
///   mu    = exp(max(min_log_mu, -exp(Mu_log) softplus(m + mu_bias)))
///   eta   = 1 + tanh(e / tau)
///   beta  = sin²(atan(eta f)) sigmoid(b)
///   alpha = cos²(atan(eta f)) exp(-exp(A_log) softplus(a + dt_bias))
MomentumGates momentum_gates(const GateProjections& projections, const GateParameters& parameters,
                             double tau, std::optional<double> min_log_mu, GateCaps caps = {});

/// What the kernel leaves of the parameters' gradients, [5, HV] by value head, as one tensor a
/// parameter, in GateParameters' order.
std::array<at::Tensor, 5> gate_parameter_gradients(const at::Tensor& d_parameters, int64_t H,
                                                   at::ScalarType type);

}  // namespace mdn::ops
