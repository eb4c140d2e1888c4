#include "mdn/layers/momentum_deltanet.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/layers/short_conv.h"
#include "mdn/ops/momentum_delta_rule.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {
namespace {

// silu(conv(W x)), or silu(W x) without a convolution.
at::Tensor projected(const at::Tensor& x, const at::Tensor& proj, const at::Tensor& conv,
                     const Sequences& sequences, at::Tensor* state) {
  const at::Tensor y = project(x, proj);
  return conv.defined() ? short_conv(y, conv, sequences, state) : at::silu(y);
}

}  // namespace

MomentumGates momentum_gates(const MomentumDeltaNetOptions& options,
                             const MomentumDeltaNetWeights& weights, const at::Tensor& x) {
  const auto type = gate_type(x);
  const int64_t group = options.HV / options.H;
  const auto per_value_head = [&](const at::Tensor& p) {
    const at::Tensor wide = p.to(type);
    return (group == 1 ? wide : wide.repeat_interleave(group)).exp();
  };
  const at::Tensor a = project(x, weights.a_proj).to(type) + weights.dt_bias.to(type);
  const at::Tensor m = project(x, weights.m_proj).to(type) + weights.mu_bias.to(type);
  const at::Tensor b = project(x, weights.b_proj).to(type);
  const at::Tensor e = project(x, weights.e_proj).to(type);

  MomentumGates gates;
  at::Tensor log_mu = -per_value_head(weights.Mu_log) * at::softplus(m);
  if (options.min_log_mu) {
    log_mu = log_mu.clamp_min(*options.min_log_mu);
  }
  gates.mu = log_mu.exp();
  gates.eta = 1 + (e / options.tau).tanh();
  // sin² = (eta f)² / (1 + (eta f)²), cos² = 1 / (1 + (eta f)²) of theta = atan(eta f)
  const at::Tensor squared = (gates.eta * per_value_head(weights.log_factor)).square();
  const at::Tensor cos2 = (1 + squared).reciprocal();
  gates.beta = squared * cos2 * b.sigmoid();
  gates.alpha = cos2 * (-per_value_head(weights.A_log) * at::softplus(a)).exp();
  return gates;
}

at::Tensor momentum_deltanet(const MomentumDeltaNetOptions& o, const MomentumDeltaNetWeights& w,
                             const at::Tensor& x, const Sequences& sequences,
                             MomentumDeltaNetState* state) {
  MDN_CHECK(!state || !sequences.packed(),
            "momentum_deltanet: a carried state with packed sequences is not supported");
  const int64_t B = x.size(0), T = x.size(1);
  at::Tensor q = projected(x, w.q_proj, w.q_conv1d, sequences, state ? &state->conv_q : nullptr);
  at::Tensor k = projected(x, w.k_proj, w.k_conv1d, sequences, state ? &state->conv_k : nullptr);
  at::Tensor v = projected(x, w.v_proj, w.v_conv1d, sequences, state ? &state->conv_v : nullptr);
  q = q.view({B, T, o.H, o.K});
  k = k.view({B, T, o.H, o.K});
  v = v.view({B, T, o.HV, o.V});
  if (w.D_log.defined()) {
    // Output correction: q <- q - exp(D_log) k, before the normalisation.
    q = q - w.D_log.exp().to(k.scalar_type()).view({o.H, 1}) * k;
  }
  const MomentumGates gates = momentum_gates(o, w, x);
  std::optional<at::Tensor> pi;
  if (!o.predict_with_alpha) {
    pi = at::ones_like(gates.alpha);
  }

  at::Tensor out;
  if (state && T == 1) {
    if (!state->S.defined()) {
      state->S = at::zeros({B, o.HV, o.V, o.K}, gates.alpha.options());
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

  if (w.g_proj.defined() || w.g_proj_0.defined()) {
    const at::Tensor g = w.g_proj.defined()
                             ? project(x, w.g_proj)
                             : project(project(x, w.g_proj_0), w.g_proj_1, w.g_proj_1_bias);
    out = ops::rms_norm(out, w.o_norm, o.norm_eps, g.view({B, T, o.HV, o.V}));
  } else {
    out = ops::rms_norm(out, w.o_norm, o.norm_eps);
  }
  return project(out.reshape({B, T, o.HV * o.V}), w.o_proj);
}

}  // namespace mdn::layers
