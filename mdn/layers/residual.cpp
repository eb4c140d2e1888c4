#include "mdn/layers/residual.h"

#include <ATen/ATen.h>

#include "mdn/ops/residual_mixer.h"
#include "mdn/ops/residual_mlp.h"
#include "mdn/ops/residual_momentum_deltanet.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {
namespace {

ops::ResidualMomentumDeltaNet block_weights(const MomentumDeltaNetWeights& w,
                                            const at::Tensor& norm) {
  return {.norm = norm,
          .q_proj = w.qkv.q_proj,
          .k_proj = w.qkv.k_proj,
          .v_proj = w.qkv.v_proj,
          .g_proj = w.output.g_proj,
          .a_proj = w.a_proj,
          .b_proj = w.b_proj,
          .m_proj = w.m_proj,
          .e_proj = w.e_proj,
          .q_conv1d = w.qkv.q_conv1d,
          .k_conv1d = w.qkv.k_conv1d,
          .v_conv1d = w.qkv.v_conv1d,
          .A_log = w.A_log,
          .Mu_log = w.Mu_log,
          .log_factor = w.log_factor,
          .dt_bias = w.dt_bias,
          .mu_bias = w.mu_bias,
          .D_log = w.D_log,
          .o_norm = w.output.o_norm,
          .o_proj = w.output.o_proj};
}

ops::ResidualMomentumDeltaNetOptions block_options(const MomentumDeltaNetOptions& o) {
  return {.H = o.num_heads,
          .HV = o.num_value_heads,
          .K = o.head_dim,
          .V = o.value_dim,
          .predict_with_alpha = o.predict_with_alpha,
          .min_log_mu = o.min_log_mu,
          .tau = o.tau,
          .eps = o.norm_eps};
}

}  // namespace

std::optional<at::Tensor> recomputed_residual_mix(const Mixer& mixer, const at::Tensor& norm,
                                                  double eps, const at::Tensor& x,
                                                  at::ScalarType type, const Sequences& sequences) {
  return std::visit(
      [&]<class M>(const M& m) -> std::optional<at::Tensor> {
        if constexpr (requires { m.parts(); }) {
          std::optional<LayerParts> parts = m.parts();
          if (!parts) {
            return std::nullopt;
          }
          if (parts->columns.empty()) {
            for (const at::Tensor& weight : parts->in) {
              parts->columns.push_back(weight.size(0));
            }
          }
          return ops::residual_mixer(
              x, {.norm = norm,
                  .eps = eps,
                  .type = type,
                  .in = parts->in,
                  .between = parts->between,
                  .columns = parts->columns,
                  .out = parts->out,
                  .mix = [m, sequences, in = parts->in](const std::vector<at::Tensor>& projected) {
                    return m.mix(Projected(in, projected), sequences, nullptr);
                  }});
        } else {
          return std::nullopt;
        }
      },
      mixer);
}

at::Tensor residual_mix(const Mixer& mixer, const at::Tensor& norm, double eps, const at::Tensor& x,
                        at::ScalarType type, const Sequences& sequences, MixerState* state) {
  const auto* momentum = std::get_if<MomentumDeltaNet>(&mixer);
  if (momentum && !state && x.scalar_type() == type && eps == momentum->options.norm_eps &&
      momentum->options.published_rule()) {
    const auto weights = block_weights(momentum->weights, norm);
    const auto options = block_options(momentum->options);
    if (ops::residual_momentum_deltanet_supports(x, weights, options)) {
      return ops::residual_momentum_deltanet(x, weights, options, sequences.cu_seqlens());
    }
  }
  if (x.is_cuda() && !state) {
    if (auto y = recomputed_residual_mix(mixer, norm, eps, x, type, sequences)) {
      return *y;
    }
  }
  return x + mix(mixer, ops::rms_norm(x, norm, eps).to(type), sequences, state);
}

at::Tensor residual_mlp(const MlpWeights& w, const at::Tensor& norm, double eps,
                        const at::Tensor& x) {
  const ops::ResidualMlp block{
      .norm = norm, .gate_proj = w.gate_proj, .up_proj = w.up_proj, .down_proj = w.down_proj};
  if (ops::residual_mlp_supports(x, block)) {
    return ops::residual_mlp(x, block, eps);
  }
  return x + mlp(w, ops::rms_norm(x, norm, eps));
}

}  // namespace mdn::layers
