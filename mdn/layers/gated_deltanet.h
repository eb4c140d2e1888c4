// The Gated DeltaNet layer (arXiv 2412.06464): the delta rule with a decay and without momentum.
#pragma once

#include "mdn/layers/gated_output.h"
#include "mdn/layers/qkv.h"

namespace mdn::layers {

struct GatedDeltaNetWeights {
  QkvWeights qkv;
  at::Tensor a_proj, b_proj;  // [HV, D]
  at::Tensor A_log, dt_bias;  // [HV]
  OutputWeights output;       // its gate is SiLU
};

struct GatedDeltaNetState : ConvStates {
  at::Tensor S;  // [B, HV, V, K] float32

  std::vector<StateField> fields();
};

/// alpha and beta of the gated delta rule, each [B, T, HV] in float32 (float64 models: float64):
///   alpha = exp(-exp(A_log) softplus(a_proj x + dt_bias)),   beta = sigmoid(b_proj x),
/// doubled with allow_neg_eigval.
struct DeltaGates {
  at::Tensor alpha, beta;
};
DeltaGates delta_gates(const GatedDeltaNetWeights& weights, bool allow_neg_eigval,
                       const Projected& x);

/// The weights of this layer, and with `others` those of one that has more.
LayerParts delta_parts(const GatedDeltaNetWeights& weights, std::vector<at::Tensor> others = {});

/// The operator of a layer without momentum, with q and k normalised inside: over x's tokens, or
/// one step in place when a state meets a single token. `pi` [B, T, HV]: absent: alpha.
at::Tensor run_gated_delta_rule(const Qkv& qkv, const DeltaGates& gates,
                                const std::optional<at::Tensor>& pi, const Sequences& sequences,
                                at::Tensor* S);

struct GatedDeltaNet {
  using State = GatedDeltaNetState;
  GatedDeltaNetOptions options;
  GatedDeltaNetWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const {
    return project(mix(x, sequences, state), weights.output.o_proj);
  }

  /// The same up to what o_proj reads, [B, T, HV V].
  at::Tensor mix(const Projected& x, const Sequences& sequences, State* state) const;
  LayerParts parts() const { return delta_parts(weights); }
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
