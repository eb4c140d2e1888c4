// The Comba layer (arXiv 2506.02475): a gated delta rule whose prediction reads a scaled key and
// whose output reads a corrected query.
#pragma once

#include "mdn/layers/gated_deltanet.h"

namespace mdn::layers {

/// The output's gate is a sigmoid here.
struct CombaWeights : GatedDeltaNetWeights {
  at::Tensor decay, D;  // [H]
};

/// With p = k sigmoid(decay), q <- q - D p, and q, k, p normalised (x / sqrt(sum(x²) + 1e-6)):
///   S <- alpha S + beta k (v - alpha Sᵀ p)ᵀ,   o = Sᵀ q / sqrt(K)
/// The normalised p is a multiple of the normalised k, so this is the gated delta rule with
///   pi = alpha sigmoid(decay) sqrt((k² + eps) / (sigmoid(decay)² k² + eps))
struct Comba {
  using State = GatedDeltaNetState;
  CombaOptions options;
  CombaWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const {
    return project(mix(x, sequences, state), weights.output.o_proj);
  }

  /// The same up to what o_proj reads, [B, T, HV V].
  at::Tensor mix(const Projected& x, const Sequences& sequences, State* state) const;
  LayerParts parts() const { return delta_parts(weights, {weights.decay, weights.D}); }
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
