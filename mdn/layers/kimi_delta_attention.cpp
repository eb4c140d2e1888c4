#include "mdn/layers/kimi_delta_attention.h"

#include <ATen/ATen.h>

#include "mdn/ops/kimi_delta_rule.h"

namespace mdn::layers {
namespace {

// Over x's tokens, or one step in place when a state meets a single token.
at::Tensor run(const Qkv& qkv, const KimiGates& gates, const Sequences& sequences, at::Tensor* S) {
  const auto& [q, k, v] = qkv;
  if (S && q.size(1) == 1 && !sequences.packed()) {
    if (!S->defined()) {
      *S = at::zeros({q.size(0), v.size(2), v.size(3), k.size(3)}, gates.beta.options());
    }
    const auto token = [](const at::Tensor& t) { return t.squeeze(1); };
    return ops::kimi_delta_rule_step(token(q), token(k), token(v), token(gates.alpha),
                                     token(gates.beta), *S, std::nullopt, std::nullopt, true)
        .unsqueeze(1);
  }
  const auto [o, final_S] = ops::kimi_delta_rule(
      q, k, v, gates.alpha, gates.beta, S && S->defined() ? std::optional(*S) : std::nullopt,
      sequences.cu_seqlens(), std::nullopt, true);
  if (S) {
    *S = final_S;
  }
  return o;
}

}  // namespace

KimiGates kimi_gates(const KimiDeltaAttentionOptions& o, const KimiDeltaAttentionWeights& w,
                     const Projected& x) {
  const at::Tensor raw = project(x(w.f_proj_0), w.f_proj_1);
  const auto type = gate_type(raw);
  const at::Tensor f =
      (raw.to(type) + w.dt_bias.to(type)).unflatten(-1, {o.num_value_heads, o.head_dim});
  const at::Tensor rate = w.A_log.to(type).exp().unsqueeze(-1);  // [HV, 1]
  const at::Tensor beta = x(w.b_proj).to(type).sigmoid();
  const at::Tensor log_alpha =
      o.lower_bound ? *o.lower_bound * (rate * f).sigmoid() : -rate * at::softplus(f);
  return {.alpha = log_alpha.exp(), .beta = o.allow_neg_eigval ? 2 * beta : beta};
}

LayerParts KimiDeltaAttention::parts() const {
  const auto& w = weights;
  return {
      .in = {w.qkv.q_proj, w.qkv.k_proj, w.qkv.v_proj, w.f_proj_0, w.output.g_proj_0, w.b_proj},
      .between = present({w.qkv.q_conv1d, w.qkv.k_conv1d, w.qkv.v_conv1d, w.f_proj_1, w.A_log,
                          w.dt_bias, w.output.g_proj_1, w.output.g_proj_1_bias, w.output.o_norm}),
      .out = w.output.o_proj};
}

at::Tensor KimiDeltaAttention::mix(const Projected& x, const Sequences& sequences,
                                   State* state) const {
  const auto& [o, w] = *this;
  sequences.check_start("kimi_delta_attention", state && state->S.defined());
  const Qkv qkv = query_key_value(o, w.qkv, x, sequences, state);
  const at::Tensor out = run(qkv, kimi_gates(o, w, x), sequences, state ? &state->S : nullptr);
  return gated_norm(w.output, ops::RmsNormGating::kSigmoid, o.norm_eps, out, x);
}

std::vector<int64_t> KimiDeltaAttention::state_shape(std::string_view field, int64_t B) const {
  return head_state_shape(options, field, B);
}

}  // namespace mdn::layers
