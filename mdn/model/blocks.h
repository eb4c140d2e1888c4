// A decoder's layers with their weights bound: what is computed, where the config says what there
// is.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "mdn/layers/mixer.h"
#include "mdn/layers/mlp.h"
#include "mdn/model/config.h"
#include "mdn/model/weights.h"

namespace mdn::model {

/// x += mixer(norm(x)); x += mlp(norm(x)). Without an MLP mlp_norm is undefined.
struct Block {
  at::Tensor attn_norm;  // [D]
  layers::Mixer mixer;
  at::Tensor mlp_norm;  // [D]
  layers::MlpWeights mlp;
};

/// The published names of what blocks have in common.
struct Names {
  std::string root, attn_norm, mixer, norm;
};
Names names_of(const Config& config);

struct DecoderWeights {
  at::Tensor embeddings;  // [vocab, D]
  std::vector<Block> blocks;
  at::Tensor norm;  // [D]
  at::Tensor head;  // [vocab, D]
};

/// Goes through a decoder's weights in the order of the published state dict and puts into each
/// place what `weight` gives for its description.
DecoderWeights walk_weights(const Config& config,
                            const std::function<at::Tensor(WeightSpec)>& weight);

/// The blocks with undefined weights: options and shapes of states, nothing allocated.
std::vector<Block> outline(const Config& config);

}  // namespace mdn::model
