// The momentum DeltaNet layer: projections, gates, the momentum delta rule, gated norm, projection.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// Sizes and choices of the layer. H query/key heads of K channels, HV value heads of V.
struct MomentumDeltaNetOptions {
  int64_t H = 1, HV = 1, K = 0, V = 0;
  bool predict_with_alpha = true;           // pi = alpha, else 1
  std::optional<double> min_log_mu = -2.0;  // floor of log mu
  double tau = 1.0;                         // of eta
  double norm_eps = 1e-6;
};

/// Published names; undefined tensors are parts the layer does not have.
struct MomentumDeltaNetWeights {
  at::Tensor q_proj, k_proj;                  // [H K, D]
  at::Tensor v_proj;                          // [HV V, D]
  at::Tensor a_proj, b_proj, m_proj, e_proj;  // [HV, D]
  at::Tensor q_conv1d, k_conv1d;              // [H K, 1, W]
  at::Tensor v_conv1d;                        // [HV V, 1, W]
  at::Tensor A_log, Mu_log, log_factor;       // [H]
  at::Tensor D_log;                           // [H], output correction
  at::Tensor dt_bias, mu_bias;                // [HV]
  at::Tensor g_proj;                          // [HV V, D], full gate
  at::Tensor g_proj_0, g_proj_1;              // [r, D], [HV V, r], low-rank gate
  at::Tensor g_proj_1_bias;                   // [HV V]
  at::Tensor o_norm;                          // [V]
  at::Tensor o_proj;                          // [D, HV V]
};

/// What a sequence carries from token to token: the operator's states and the convolutions' last
/// inputs. Undefined tensors are a fresh start.
struct MomentumDeltaNetState {
  at::Tensor S, M;                    // [B, HV, V, K] float32
  at::Tensor conv_q, conv_k, conv_v;  // [B, W-1, channels]
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

/// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences it belongs to and the state is
/// advanced (inference only); a single token takes the in-place step.
at::Tensor momentum_deltanet(const MomentumDeltaNetOptions& options,
                             const MomentumDeltaNetWeights& weights, const at::Tensor& x,
                             const Sequences& sequences, MomentumDeltaNetState* state);

}  // namespace mdn::layers
