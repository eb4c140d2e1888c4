#include "mdn/model/decoder.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/layers/residual.h"
#include "mdn/ops/cross_entropy.h"
#include "mdn/ops/embedding.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::model {

Decoder::Decoder(Config config, Parameters parameters, std::optional<at::ScalarType> compute_type)
    : config_(std::move(config)),
      parameters_(std::move(parameters)),
      weights_(
          walk_weights(config_, [&](const WeightSpec& spec) { return parameters_.at(spec.name); })),
      compute_type_(compute_type.value_or(weights_.embeddings.scalar_type())) {}

at::Tensor Decoder::hidden(const at::Tensor& ids, const layers::Sequences& sequences,
                           DecoderState* state, const LayerObserver& observe) const {
  MDN_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong && ids.numel() > 0,
            "token ids must be [B, T] int64 with at least one token");
  at::Tensor x =
      ops::embedding(weights_.embeddings, ids, config_.pad_token_id.value_or(-1)).to(compute_type_);
  if (config_.residual_in_fp32) {
    x = x.to(layers::gate_type(x));
  }
  const auto normed = [&](const at::Tensor& weight) {
    return ops::rms_norm(x, weight, config_.norm_eps).to(compute_type_);
  };
  for (size_t i = 0; i < weights_.blocks.size(); ++i) {
    const Block& block = weights_.blocks[i];
    if (observe) {
      observe(i, x);
    }
    layers::MixerState* carried = state ? &state->layers[i] : nullptr;
    x = layers::residual_mix(block.mixer, block.attn_norm, config_.norm_eps, x, compute_type_,
                             sequences, carried);
    if (block.mlp_norm.defined()) {
      x = layers::residual_mlp(block.mlp, block.mlp_norm, config_.norm_eps, x);
    }
  }
  if (state) {
    state->position += ids.size(1);
  }
  return normed(weights_.norm);
}

at::Tensor Decoder::logits(const at::Tensor& hidden) const {
  return layers::project(hidden, weights_.head);
}

at::Tensor Decoder::loss(const at::Tensor& ids, const at::Tensor& targets,
                         const layers::Sequences& sequences) const {
  MDN_CHECK(targets.sizes() == ids.sizes(), "targets must have the shape of the token ids");
  return ops::linear_cross_entropy(hidden(ids, sequences), weights_.head, targets);
}

DecoderState Decoder::new_state() const {
  DecoderState state;
  for (const Block& block : weights_.blocks) {
    state.layers.push_back(layers::new_state(block.mixer));
  }
  return state;
}

Decoder load_decoder(const std::filesystem::path& folder, at::ScalarType type, c10::Device device) {
  Config config = read_config(folder.string());
  Parameters parameters = Parameters::load(config, folder, type, device);
  return Decoder(std::move(config), std::move(parameters));
}

}  // namespace mdn::model
