// The momentum DeltaNet layer: projections, gates, the momentum delta rule, gated norm, projection.
#pragma once

#include "mdn/layers/gated_output.h"
#include "mdn/layers/qkv.h"
#include "mdn/ops/momentum_gates.h"

namespace mdn::layers {

/// Published names; undefined tensors are parts the layer does not have.
struct MomentumDeltaNetWeights {
  QkvWeights qkv;
  at::Tensor a_proj, b_proj, m_proj, e_proj;  // [HV, D]
  at::Tensor A_log, Mu_log, log_factor;       // [H]
  at::Tensor D_log;                           // [H], output correction
  at::Tensor dt_bias, mu_bias;                // [HV]
  at::Tensor n_proj, nu_bias;                 // [HV, D], [HV], of the quasi-hyperbolic step
  OutputWeights output;
};

/// What a sequence carries from token to token: the operator's states and the convolutions' last
/// inputs. Undefined tensors are a fresh start.
struct MomentumDeltaNetState : ConvStates {
  at::Tensor S, M;  // [B, HV, V, K] float32; no M without momentum

  std::vector<StateField> fields();
};

/// The four gates of the operator, each [B, T, HV]: ops::momentum_gates of a_proj x, b_proj x,
/// m_proj x, e_proj x. mu is undefined without momentum.
ops::MomentumGates momentum_gates(const MomentumDeltaNetOptions& options,
                                  const MomentumDeltaNetWeights& weights, const Projected& x);

/// The operator's other scalars, each [B, T, HV], undefined where the published layer has no need
/// of them: pi (then alpha), and for the other kinds of momentum what
/// ops::general_momentum_delta_rule calls kappa and lambda. The quasi-hyperbolic step mixes by
///   nu = min(1, 2 sigmoid(n_proj x + nu_bias))
/// which is 1, the published layer, while both are 0.
struct MomentumCoupling {
  at::Tensor pi, nu, kappa, lambda;
};
MomentumCoupling momentum_coupling(const MomentumDeltaNetOptions& options,
                                   const MomentumDeltaNetWeights& weights, const Projected& x,
                                   const ops::MomentumGates& gates);

struct MomentumDeltaNet {
  using State = MomentumDeltaNetState;
  MomentumDeltaNetOptions options;
  MomentumDeltaNetWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences it belongs to and the state
  /// is advanced (inference only); a single token takes the in-place step. With packed sequences
  /// the state must be a fresh one and becomes that of all of them, [N, ...]; so it is in the other
  /// layers with such a state.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const {
    return project(mix(x, sequences, state), weights.output.o_proj);
  }

  /// The same up to what o_proj reads, [B, T, HV V].
  at::Tensor mix(const Projected& x, const Sequences& sequences, State* state) const;
  /// Nothing for the kinds of momentum whose operator costs more to run twice than what it keeps.
  std::optional<LayerParts> parts() const;

  /// The shape of a state's field for B sequences; empty where the layer has no such part.
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
