// A whole pre-norm momentum DeltaNet block on CUDA, with its gradient: one node in the graph that
// keeps its input, the projections, the operator's output and what the operator saves, and makes
// the norms and convolutions again in the backward pass. All projections are one matrix product.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace mdn::ops {

/// Published names and shapes, of any float dtype, converted to x's. D_log may be undefined.
struct ResidualMomentumDeltaNet {
  at::Tensor norm;                                         // [D]
  at::Tensor q_proj, k_proj;                               // [H K, D]
  at::Tensor v_proj, g_proj;                               // [HV V, D]
  at::Tensor a_proj, b_proj, m_proj, e_proj;               // [HV, D]
  at::Tensor q_conv1d, k_conv1d;                           // [H K, 1, W]
  at::Tensor v_conv1d;                                     // [HV V, 1, W]
  at::Tensor A_log, Mu_log, log_factor, dt_bias, mu_bias;  // [H] three times, [HV] twice
  at::Tensor D_log;                                        // [H]
  at::Tensor o_norm;                                       // [V]
  at::Tensor o_proj;                                       // [D, HV V]
};

struct ResidualMomentumDeltaNetOptions {
  int64_t H = 1, HV = 1, K = 0, V = 0;
  bool predict_with_alpha = true;    // pi = alpha, else 1
  std::optional<double> min_log_mu;  // floor of log mu
  double tau = 1.0;                  // of eta
  double eps = 1e-6;                 // of both norms
};

/// Whether residual_momentum_deltanet takes this: x on CUDA, of 16 or 32 bits, with convolutions, a
/// full gate, and sizes that its kernels handle.
bool residual_momentum_deltanet_supports(const at::Tensor& x,
                                         const ResidualMomentumDeltaNet& weights,
                                         const ResidualMomentumDeltaNetOptions& options);

/// x + layer(rms_norm(x)), x [B, T, D], with the layer of mdn/layers/momentum_deltanet.h. Sequences
/// as in momentum_delta_rule; cu_seqlens on the CPU.
at::Tensor residual_momentum_deltanet(const at::Tensor& x, const ResidualMomentumDeltaNet& weights,
                                      const ResidualMomentumDeltaNetOptions& options,
                                      const std::optional<at::Tensor>& cu_seqlens);

}  // namespace mdn::ops
