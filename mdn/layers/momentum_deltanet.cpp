#include "mdn/layers/momentum_deltanet.h"

#include <ATen/ATen.h>

#include "mdn/layers/gated_deltanet.h"
#include "mdn/ops/general_momentum_delta_rule.h"
#include "mdn/ops/momentum_delta_rule.h"

namespace mdn::layers {

std::vector<StateField> MomentumDeltaNetState::fields() {
  std::vector<StateField> all = {{"S", &S}, {"M", &M}};
  for (const StateField& field : conv_fields()) {
    all.push_back(field);
  }
  return all;
}

ops::MomentumGates momentum_gates(const MomentumDeltaNetOptions& o,
                                  const MomentumDeltaNetWeights& w, const Projected& x) {
  return ops::momentum_gates({.a = x(w.a_proj),
                              .b = x(w.b_proj),
                              .m = w.m_proj.defined() ? x(w.m_proj) : at::Tensor(),
                              .e = x(w.e_proj)},
                             {.A_log = w.A_log,
                              .Mu_log = w.Mu_log,
                              .log_factor = w.log_factor,
                              .dt_bias = w.dt_bias,
                              .mu_bias = w.mu_bias},
                             o.tau, o.min_log_mu, {.alpha = o.alpha_cap, .beta = o.beta_cap});
}

MomentumCoupling momentum_coupling(const MomentumDeltaNetOptions& o,
                                   const MomentumDeltaNetWeights& w, const Projected& x,
                                   const ops::MomentumGates& gates) {
  MomentumCoupling c;
  if (!o.predict_with_alpha) {
    c.pi = at::ones_like(gates.alpha);
  }
  if (o.momentum == MomentumKind::kNesterov) {
    c.kappa = c.lambda = gates.beta * gates.mu;
  } else if (o.momentum == MomentumKind::kQuasiHyperbolic) {
    const at::Tensor n = x(w.n_proj);
    const auto type = gate_type(n);
    c.nu = (2 * (n.to(type) + w.nu_bias.to(type)).sigmoid()).clamp_max(1);
    c.kappa = gates.beta * c.nu * gates.mu;
    c.lambda = at::zeros_like(c.kappa);
  }
  return c;
}

namespace {

/// The operator with q and k normalised inside: over x's tokens, or one step in place when a state
/// meets a single token.
at::Tensor run_momentum_rule(const Qkv& qkv, const ops::MomentumGates& g, const MomentumCoupling& c,
                             const Sequences& sequences, MomentumDeltaNetState* state) {
  using Optional = std::optional<at::Tensor>;
  const auto& [q, k, v] = qkv;
  const bool published = !c.kappa.defined();
  const Optional pi = c.pi.defined() ? Optional(c.pi) : std::nullopt;
  if (state && q.size(1) == 1 && !sequences.packed()) {
    if (!state->S.defined()) {
      state->S = at::zeros({q.size(0), v.size(2), v.size(3), k.size(3)}, g.alpha.options());
      state->M = at::zeros_like(state->S);
    }
    const auto token = [](const at::Tensor& t) { return t.squeeze(1); };
    const Optional pi_now = pi ? Optional(token(*pi)) : std::nullopt;
    const at::Tensor o =
        published
            ? ops::momentum_delta_rule_step(token(q), token(k), token(v), token(g.alpha),
                                            token(g.mu), token(g.eta), token(g.beta), state->S,
                                            state->M, pi_now, std::nullopt, std::nullopt, true)
            : ops::general_momentum_delta_rule_step(token(q), token(k), token(v), token(g.alpha),
                                                    token(g.mu), token(g.eta), token(g.beta),
                                                    token(c.kappa), token(c.lambda), state->S,
                                                    state->M, pi_now, std::nullopt, true);
    return o.unsqueeze(1);
  }
  Optional S, M;
  if (state && state->S.defined()) {
    S = state->S;
    M = state->M;
  }
  auto [o, final_S, final_M] =
      published ? ops::momentum_delta_rule(q, k, v, g.alpha, g.mu, g.eta, g.beta, pi, S, M,
                                           sequences.cu_seqlens(), std::nullopt, true)
                : ops::general_momentum_delta_rule(q, k, v, g.alpha, g.mu, g.eta, g.beta, c.kappa,
                                                   c.lambda, pi, S, M, sequences.cu_seqlens(),
                                                   std::nullopt, true);
  if (state) {
    state->S = final_S;
    state->M = final_M;
  }
  return o;
}

}  // namespace

std::optional<LayerParts> MomentumDeltaNet::parts() const {
  const auto& w = weights;
  if (options.momentum == MomentumKind::kNesterov ||
      options.momentum == MomentumKind::kQuasiHyperbolic) {
    return std::nullopt;
  }
  return LayerParts{
      .in = present({w.qkv.q_proj, w.qkv.k_proj, w.qkv.v_proj, w.output.g_proj, w.output.g_proj_0,
                     w.a_proj, w.b_proj, w.m_proj, w.e_proj}),
      .between = present({w.qkv.q_conv1d, w.qkv.k_conv1d, w.qkv.v_conv1d, w.A_log, w.Mu_log,
                          w.log_factor, w.D_log, w.dt_bias, w.mu_bias, w.output.g_proj_1,
                          w.output.g_proj_1_bias, w.output.o_norm}),
      .out = w.output.o_proj};
}

at::Tensor MomentumDeltaNet::mix(const Projected& x, const Sequences& sequences,
                                 State* state) const {
  const auto& [o, w] = *this;
  sequences.check_start("momentum_deltanet", state && state->S.defined());
  Qkv qkv = query_key_value(o, w.qkv, x, sequences, state);
  if (w.D_log.defined()) {
    // Output correction: q <- q - exp(D_log) k, before the normalisation.
    qkv.q = qkv.q - w.D_log.exp().to(qkv.k.scalar_type()).view({o.num_heads, 1}) * qkv.k;
  }
  const ops::MomentumGates gates = momentum_gates(o, w, x);
  const MomentumCoupling coupling = momentum_coupling(o, w, x, gates);
  at::Tensor out;
  if (o.momentum == MomentumKind::kNone) {
    // S <- alpha S + beta eta k rᵀ
    out = run_gated_delta_rule(qkv, {.alpha = gates.alpha, .beta = gates.beta * gates.eta},
                               coupling.pi.defined() ? std::optional(coupling.pi) : std::nullopt,
                               sequences, state ? &state->S : nullptr);
  } else {
    out = run_momentum_rule(qkv, gates, coupling, sequences, state);
  }
  return gated_norm(w.output, ops::RmsNormGating::kSigmoid, o.norm_eps, out, x);
}

std::vector<int64_t> MomentumDeltaNet::state_shape(std::string_view field, int64_t B) const {
  if (field == "M" && options.momentum == MomentumKind::kNone) {
    return {};
  }
  return head_state_shape(options, field, B);
}

}  // namespace mdn::layers
