// The Mamba2 layer (arXiv 2405.21060): a linear recurrence whose state is the gated delta rule's
// without a prediction (pi = 0), so that it runs on that operator.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

#include "mdn/layers/options.h"
#include "mdn/layers/qkv.h"
#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// With E = H P channels, G groups, N state channels; undefined tensors are parts it does not have.
struct Mamba2Weights {
  at::Tensor dt_bias, A_log, D;        // [H]
  at::Tensor conv1d, conv1d_bias;      // [E + 2 G N, 1, W], [E + 2 G N]
  at::Tensor in_proj, in_proj_bias;    // [2 E + 2 G N + H, D]: rows of z, x, B, C, dt
  at::Tensor norm;                     // [E]
  at::Tensor out_proj, out_proj_bias;  // [D, E]
};

/// Undefined tensors are a fresh start.
struct Mamba2State {
  at::Tensor S;     // [B, H, P, N] float32
  at::Tensor conv;  // [B, W-1, E + 2 G N]: the convolution's last inputs

  std::vector<StateField> fields();
};

/// Per head h with its group's B and C, after one convolution with SiLU over (x, B, C):
///   dt = clamp(softplus(dt + dt_bias), dt_limit)
///   S <- exp(-exp(A_log) dt) S + dt B xᵀ;   y = Sᵀ C + D x
/// then out_proj of RMSNorm(y silu(z)), or RMSNorm(y) silu(z), over each group of E/G channels.
struct Mamba2 {
  using State = Mamba2State;
  Mamba2Options options;
  Mamba2Weights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const {
    return project(mix(x, sequences, state), weights.out_proj, weights.out_proj_bias);
  }

  /// The same up to what out_proj reads, [B, T, E].
  at::Tensor mix(const Projected& x, const Sequences& sequences, State* state) const;
  /// Nothing with biases in the projections.
  std::optional<LayerParts> parts() const;
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
