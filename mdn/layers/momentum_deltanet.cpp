#include "mdn/layers/momentum_deltanet.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/ops/momentum_delta_rule.h"

namespace mdn::layers {

std::vector<StateField> MomentumDeltaNetState::fields() {
  std::vector<StateField> all = {{"S", &S}, {"M", &M}};
  for (const StateField& field : conv_fields()) {
    all.push_back(field);
  }
  return all;
}

MomentumGates momentum_gates(const MomentumDeltaNetOptions& o,
                             const MomentumDeltaNetWeights& weights, const at::Tensor& x) {
  const auto type = gate_type(x);
  const auto per_value_head = [&](const at::Tensor& p) {
    const at::Tensor wide = p.to(type);
    return (o.group() == 1 ? wide : wide.repeat_interleave(o.group())).exp();
  };
  const at::Tensor a = project(x, weights.a_proj).to(type) + weights.dt_bias.to(type);
  const at::Tensor m = project(x, weights.m_proj).to(type) + weights.mu_bias.to(type);
  const at::Tensor b = project(x, weights.b_proj).to(type);
  const at::Tensor e = project(x, weights.e_proj).to(type);

  MomentumGates gates;
  at::Tensor log_mu = -per_value_head(weights.Mu_log) * at::softplus(m);
  if (o.min_log_mu) {
    log_mu = log_mu.clamp_min(*o.min_log_mu);
  }
  gates.mu = log_mu.exp();
  gates.eta = 1 + (e / o.tau).tanh();
  // sin² = (eta f)² / (1 + (eta f)²), cos² = 1 / (1 + (eta f)²) of theta = atan(eta f)
  const at::Tensor squared = (gates.eta * per_value_head(weights.log_factor)).square();
  const at::Tensor cos2 = (1 + squared).reciprocal();
  gates.beta = squared * cos2 * b.sigmoid();
  gates.alpha = cos2 * (-per_value_head(weights.A_log) * at::softplus(a)).exp();
  return gates;
}

at::Tensor MomentumDeltaNet::operator()(const at::Tensor& x, const Sequences& sequences,
                                        State* state) const {
  const auto& [o, w] = *this;
  MDN_CHECK(!state || !sequences.packed(),
            "momentum_deltanet: a carried state with packed sequences is not supported");
  const int64_t B = x.size(0), T = x.size(1);
  auto [q, k, v] = query_key_value(o, w.qkv, x, sequences, state);
  if (w.D_log.defined()) {
    // Output correction: q <- q - exp(D_log) k, before the normalisation.
    q = q - w.D_log.exp().to(k.scalar_type()).view({o.num_heads, 1}) * k;
  }
  const MomentumGates gates = momentum_gates(o, w, x);
  std::optional<at::Tensor> pi;
  if (!o.predict_with_alpha) {
    pi = at::ones_like(gates.alpha);
  }

  at::Tensor out;
  if (state && T == 1) {
    if (!state->S.defined()) {
      state->S = at::zeros(state_shape("S", B), gates.alpha.options());
      state->M = at::zeros_like(state->S);
    }
    const auto token = [](const at::Tensor& t) { return t.squeeze(1); };
    out = ops::momentum_delta_rule_step(
        token(q), token(k), token(v), token(gates.alpha), token(gates.mu), token(gates.eta),
        token(gates.beta), state->S, state->M, pi ? std::optional(token(*pi)) : std::nullopt,
        std::nullopt, std::nullopt, true);
    out = out.unsqueeze(1);
  } else {
    std::optional<at::Tensor> S, M;
    if (state && state->S.defined()) {
      S = state->S;
      M = state->M;
    }
    at::Tensor final_S, final_M;
    std::tie(out, final_S, final_M) =
        ops::momentum_delta_rule(q, k, v, gates.alpha, gates.mu, gates.eta, gates.beta, pi, S, M,
                                 sequences.cu_seqlens(), std::nullopt, true);
    if (state) {
      state->S = final_S;
      state->M = final_M;
    }
  }
  return gated_output(w.output, GateActivation::kSigmoid, o.norm_eps, out, x);
}

std::vector<int64_t> MomentumDeltaNet::state_shape(std::string_view field, int64_t B) const {
  if (field == "S" || field == "M") {
    return {B, options.num_value_heads, options.value_dim, options.head_dim};
  }
  return conv_shape(options, field, B);
}

}  // namespace mdn::layers
