// The momentum DeltaNet layer: projections, gates, the momentum delta rule, gated norm, projection.
#pragma once

#include "mdn/layers/gated_output.h"
#include "mdn/layers/qkv.h"

namespace mdn::layers {

/// Published names; undefined tensors are parts the layer does not have.
struct MomentumDeltaNetWeights {
  QkvWeights qkv;
  at::Tensor a_proj, b_proj, m_proj, e_proj;  // [HV, D]
  at::Tensor A_log, Mu_log, log_factor;       // [H]
  at::Tensor D_log;                           // [H], output correction
  at::Tensor dt_bias, mu_bias;                // [HV]
  OutputWeights output;
};

/// What a sequence carries from token to token: the operator's states and the convolutions' last
/// inputs. Undefined tensors are a fresh start.
struct MomentumDeltaNetState : ConvStates {
  at::Tensor S, M;  // [B, HV, V, K] float32

  std::vector<StateField> fields();
};

/// The four gates of the operator, each [B, T, HV] in float32 (float64 for float64 models).
struct MomentumGates {
  at::Tensor alpha, mu, eta, beta;
};

/// With f = exp(log_factor), and A_log, Mu_log, log_factor of value head j being entry j / (HV/H):
///   mu    = exp(max(min_log_mu, -exp(Mu_log) softplus(m_proj x + mu_bias)))
///   eta   = 1 + tanh(e_proj x / tau)
///   beta  = sin²(atan(eta f)) sigmoid(b_proj x)
///   alpha = cos²(atan(eta f)) exp(-exp(A_log) softplus(a_proj x + dt_bias))
MomentumGates momentum_gates(const MomentumDeltaNetOptions& options,
                             const MomentumDeltaNetWeights& weights, const at::Tensor& x);

struct MomentumDeltaNet {
  using State = MomentumDeltaNetState;
  MomentumDeltaNetOptions options;
  MomentumDeltaNetWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences it belongs to and the state
  /// is advanced (inference only); a single token takes the in-place step.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const;

  /// The shape of a state's field for B sequences; empty where the layer has no such part.
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
