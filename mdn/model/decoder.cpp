#include "mdn/model/decoder.h"

#include <ATen/ATen.h>

#include <cmath>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::model {
namespace {

// Looks weights up below a prefix; absent optional ones stay undefined.
class Binder {
 public:
  Binder(const Parameters& parameters, std::string prefix)
      : parameters_(parameters), prefix_(std::move(prefix)) {}

  at::Tensor operator()(const char* name) const { return parameters_.at(prefix_ + name); }
  at::Tensor maybe(const char* name) const {
    return parameters_.has(prefix_ + name) ? parameters_.at(prefix_ + name) : at::Tensor();
  }

 private:
  const Parameters& parameters_;
  std::string prefix_;
};

layers::MomentumDeltaNetWeights bind_momentum_deltanet(const Binder& weight) {
  return {.q_proj = weight("q_proj.weight"),
          .k_proj = weight("k_proj.weight"),
          .v_proj = weight("v_proj.weight"),
          .a_proj = weight("a_proj.weight"),
          .b_proj = weight("b_proj.weight"),
          .m_proj = weight("m_proj.weight"),
          .e_proj = weight("e_proj.weight"),
          .q_conv1d = weight.maybe("q_conv1d.weight"),
          .k_conv1d = weight.maybe("k_conv1d.weight"),
          .v_conv1d = weight.maybe("v_conv1d.weight"),
          .A_log = weight("A_log"),
          .Mu_log = weight("Mu_log"),
          .log_factor = weight("log_factor"),
          .D_log = weight.maybe("D_log"),
          .dt_bias = weight("dt_bias"),
          .mu_bias = weight("mu_bias"),
          .g_proj = weight.maybe("g_proj.weight"),
          .g_proj_0 = weight.maybe("g_proj.0.weight"),
          .g_proj_1 = weight.maybe("g_proj.1.weight"),
          .g_proj_1_bias = weight.maybe("g_proj.1.bias"),
          .o_norm = weight("o_norm.weight"),
          .o_proj = weight("o_proj.weight")};
}

layers::AttentionWeights bind_attention(const Binder& weight) {
  return {.q_proj = weight("q_proj.weight"),
          .k_proj = weight("k_proj.weight"),
          .v_proj = weight("v_proj.weight"),
          .o_proj = weight("o_proj.weight"),
          .q_bias = weight.maybe("q_proj.bias"),
          .k_bias = weight.maybe("k_proj.bias"),
          .v_bias = weight.maybe("v_proj.bias")};
}

}  // namespace

Decoder::Decoder(Config config, Parameters parameters, std::optional<at::ScalarType> compute_type)
    : config_(std::move(config)), parameters_(std::move(parameters)) {
  const MomentumDeltaNetConfig& m = config_.momentum_deltanet;
  momentum_options_ = {.H = m.num_heads,
                       .HV = m.num_value_heads,
                       .K = m.head_dim,
                       .V = m.value_dim,
                       .predict_with_alpha = m.predict_with_alpha,
                       .min_log_mu = m.min_log_mu,
                       .tau = std::sqrt(static_cast<double>(config_.hidden_size) / m.tau_factor),
                       .norm_eps = config_.norm_eps};
  const AttentionConfig& a = config_.attention;
  if (a.num_heads > 0) {
    attention_options_ = {.num_heads = a.num_heads,
                          .num_kv_heads = a.num_kv_heads,
                          .head_dim = config_.hidden_size / a.num_heads,
                          .rope_theta = a.rope_theta,
                          .window = a.window_size};
  }
  embeddings_ = parameters_.at("model.embeddings.weight");
  compute_type_ = compute_type.value_or(embeddings_.scalar_type());
  norm_ = parameters_.at("model.norm.weight");
  head_ = config_.tie_word_embeddings ? embeddings_ : parameters_.at("lm_head.weight");
  for (size_t i = 0; i < config_.layers.size(); ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const Binder weight(parameters_, layer), mixer(parameters_, layer + "attn.");
    Block block{.kind = config_.layers[i],
                .attn_norm = weight("attn_norm.weight"),
                .mlp_norm = weight("mlp_norm.weight"),
                .mixer = {},
                .mlp = {.gate_proj = weight("mlp.gate_proj.weight"),
                        .up_proj = weight("mlp.up_proj.weight"),
                        .down_proj = weight("mlp.down_proj.weight")}};
    switch (block.kind) {
      case MixerKind::kMomentumDeltaNet:
        block.mixer = bind_momentum_deltanet(mixer);
        break;
      case MixerKind::kAttention:
        block.mixer = bind_attention(mixer);
        break;
    }
    blocks_.push_back(std::move(block));
  }
}

at::Tensor Decoder::hidden(const at::Tensor& ids, const layers::Sequences& sequences,
                           DecoderState* state) const {
  MDN_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong && ids.numel() > 0,
            "token ids must be [B, T] int64 with at least one token");
  at::Tensor x = at::embedding(embeddings_, ids).to(compute_type_);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    const at::Tensor normed = ops::rms_norm(x, block.attn_norm, config_.norm_eps);
    switch (block.kind) {
      case MixerKind::kMomentumDeltaNet: {
        auto* carried =
            state ? &std::get<layers::MomentumDeltaNetState>(state->layers[i]) : nullptr;
        x = x + layers::momentum_deltanet(momentum_options_,
                                          std::get<layers::MomentumDeltaNetWeights>(block.mixer),
                                          normed, sequences, carried);
        break;
      }
      case MixerKind::kAttention: {
        auto* carried = state ? &std::get<layers::AttentionState>(state->layers[i]) : nullptr;
        x = x + layers::attention(attention_options_,
                                  std::get<layers::AttentionWeights>(block.mixer), normed,
                                  sequences, carried);
        break;
      }
    }
    x = x + layers::mlp(block.mlp, ops::rms_norm(x, block.mlp_norm, config_.norm_eps));
  }
  if (state) {
    state->position += ids.size(1);
  }
  return ops::rms_norm(x, norm_, config_.norm_eps);
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return layers::project(hidden, head_);
}

at::Tensor Decoder::loss(const at::Tensor& ids, const at::Tensor& targets,
                         const layers::Sequences& sequences) const {
  MDN_CHECK(targets.sizes() == ids.sizes(), "targets must have the shape of the token ids");
  const at::Tensor out = logits(hidden(ids, sequences));
  const at::Tensor wide = out.to(layers::gate_type(out));
  return at::cross_entropy_loss(wide.view({-1, config_.vocab_size}), targets.reshape({-1}),
                                std::nullopt, at::Reduction::Mean, -100);
}

DecoderState Decoder::new_state() const {
  DecoderState state;
  for (const Block& block : blocks_) {
    switch (block.kind) {
      case MixerKind::kMomentumDeltaNet:
        state.layers.emplace_back(layers::MomentumDeltaNetState{});
        break;
      case MixerKind::kAttention:
        state.layers.emplace_back(layers::AttentionState{});
        break;
    }
  }
  return state;
}

Decoder load_decoder(const std::filesystem::path& folder, at::ScalarType type, c10::Device device) {
  Config config = read_config(folder.string());
  Parameters parameters = Parameters::load(config, folder, type, device);
  return Decoder(std::move(config), std::move(parameters));
}

}  // namespace mdn::model
