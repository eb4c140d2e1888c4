#include "mdn/layers/comba.h"

#include <ATen/ATen.h>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::layers {

at::Tensor Comba::mix(const Projected& x, const Sequences& sequences, State* state) const {
  const auto& [o, w] = *this;
  sequences.check_start("comba", state && state->S.defined());
  Qkv qkv = query_key_value(o, w.qkv, x, sequences, state);
  const DeltaGates gates = delta_gates(w, false, x);
  const at::Tensor& k = qkv.k;
  const at::Tensor scale = w.decay.sigmoid().view({o.num_heads, 1});  // p = scale k
  qkv.q = qkv.q - (w.D.view({o.num_heads, 1}) * scale).to(k.scalar_type()) * k;

  const auto type = gate_type(k);
  const at::Tensor squared = k.to(type).square().sum(-1);  // [B, T, H]
  const at::Tensor s = w.decay.to(type).sigmoid();
  constexpr double eps = kernels::kL2NormEps;
  at::Tensor ratio = s * ((squared + eps) / (s.square() * squared + eps)).sqrt();
  if (o.group() > 1) {
    ratio = ratio.repeat_interleave(o.group(), -1);
  }
  const at::Tensor out =
      run_gated_delta_rule(qkv, gates, gates.alpha * ratio, sequences, state ? &state->S : nullptr);
  return gated_norm(w.output, ops::RmsNormGating::kSigmoid, o.norm_eps, out, x);
}

std::vector<int64_t> Comba::state_shape(std::string_view field, int64_t B) const {
  return head_state_shape(options, field, B);
}

}  // namespace mdn::layers
