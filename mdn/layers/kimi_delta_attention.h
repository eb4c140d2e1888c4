// Kimi Delta Attention (arXiv 2510.26692): the delta rule with one decay a key channel.
#pragma once

#include "mdn/layers/gated_deltanet.h"
#include "mdn/layers/gated_output.h"
#include "mdn/layers/qkv.h"

namespace mdn::layers {

struct KimiDeltaAttentionWeights {
  QkvWeights qkv;
  at::Tensor f_proj_0, f_proj_1;  // [V, D], [HV K, V]: the decay's low-rank projection
  at::Tensor A_log;               // [HV]
  at::Tensor dt_bias;             // [HV K]
  at::Tensor b_proj;              // [HV, D]
  OutputWeights output;           // its gate is a sigmoid, of rank V
};

/// In float32 (float64 models: float64):
///   alpha[h, i] = exp(-exp(A_log[h]) softplus((f_proj x)[h, i] + dt_bias[h, i]))   [B, T, HV, K]
///   or exp(lower_bound sigmoid(exp(A_log[h]) ((f_proj x)[h, i] + dt_bias[h, i]))) with that bound
///   beta = sigmoid(b_proj x), doubled with allow_neg_eigval                        [B, T, HV]
struct KimiGates {
  at::Tensor alpha, beta;
};
KimiGates kimi_gates(const KimiDeltaAttentionOptions& options,
                     const KimiDeltaAttentionWeights& weights, const Projected& x);

struct KimiDeltaAttention {
  using State = GatedDeltaNetState;
  KimiDeltaAttentionOptions options;
  KimiDeltaAttentionWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const {
    return project(mix(x, sequences, state), weights.output.o_proj);
  }

  /// The same up to what o_proj reads, [B, T, HV V].
  at::Tensor mix(const Projected& x, const Sequences& sequences, State* state) const;
  LayerParts parts() const;
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
