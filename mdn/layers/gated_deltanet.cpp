#include "mdn/layers/gated_deltanet.h"

#include <ATen/ATen.h>

#include "mdn/ops/decay_gates.h"
#include "mdn/ops/gated_delta_rule.h"

namespace mdn::layers {

std::vector<StateField> GatedDeltaNetState::fields() {
  std::vector<StateField> all = {{"S", &S}};
  for (const StateField& field : conv_fields()) {
    all.push_back(field);
  }
  return all;
}

DeltaGates delta_gates(const GatedDeltaNetWeights& w, bool allow_neg_eigval, const Projected& x) {
  const auto gates = ops::decay_gates(x(w.a_proj), x(w.b_proj), w.A_log, w.dt_bias,
                                      {.max_beta = allow_neg_eigval ? 2.0 : 1.0});
  return {.alpha = gates.alpha, .beta = gates.beta};
}

LayerParts delta_parts(const GatedDeltaNetWeights& w, std::vector<at::Tensor> others) {
  const QkvWeights& qkv = w.qkv;
  for (const at::Tensor& t :
       {qkv.q_conv1d, qkv.k_conv1d, qkv.v_conv1d, w.A_log, w.dt_bias, w.output.o_norm}) {
    others.push_back(t);
  }
  return {.in = present({qkv.q_proj, qkv.k_proj, qkv.v_proj, w.output.g_proj, w.a_proj, w.b_proj}),
          .between = present(std::move(others)),
          .out = w.output.o_proj};
}

at::Tensor run_gated_delta_rule(const Qkv& qkv, const DeltaGates& gates,
                                const std::optional<at::Tensor>& pi, const Sequences& sequences,
                                at::Tensor* S) {
  const auto& [q, k, v] = qkv;
  if (S && q.size(1) == 1 && !sequences.packed()) {
    if (!S->defined()) {
      *S = at::zeros({q.size(0), v.size(2), v.size(3), k.size(3)}, gates.alpha.options());
    }
    const auto token = [](const at::Tensor& t) { return t.squeeze(1); };
    return ops::gated_delta_rule_step(
               token(q), token(k), token(v), token(gates.alpha), token(gates.beta), *S,
               pi ? std::optional(token(*pi)) : std::nullopt, std::nullopt, std::nullopt, true)
        .unsqueeze(1);
  }
  auto [o, final_S] = ops::gated_delta_rule(q, k, v, gates.alpha, gates.beta, pi,
                                            S && S->defined() ? std::optional(*S) : std::nullopt,
                                            sequences.cu_seqlens(), std::nullopt, true);
  if (S) {
    *S = final_S;
  }
  return o;
}

at::Tensor GatedDeltaNet::mix(const Projected& x, const Sequences& sequences, State* state) const {
  const auto& [o, w] = *this;
  sequences.check_start("gated_deltanet", state && state->S.defined());
  const Qkv qkv = query_key_value(o, w.qkv, x, sequences, state);
  const DeltaGates gates = delta_gates(w, o.allow_neg_eigval, x);
  const at::Tensor out =
      run_gated_delta_rule(qkv, gates, std::nullopt, sequences, state ? &state->S : nullptr);
  return gated_norm(w.output, ops::RmsNormGating::kSilu, o.norm_eps, out, x);
}

std::vector<int64_t> GatedDeltaNet::state_shape(std::string_view field, int64_t B) const {
  return head_state_shape(options, field, B);
}

}  // namespace mdn::layers
