// A model small enough for tests: every kind of layer that carries a state, random weights.
#pragma once

#include "mdn/core/error.h"
#include "mdn/model/decoder.h"

namespace mdn::evaluate {

inline model::Decoder tiny_decoder(at::ScalarType type, int64_t vocab = 256) {
  const model::Config config = model::parse_config(
      fmt::format(R"({{"model_type": "momentum_deltanet", "vocab_size": {}, "hidden_size": 32,
                       "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "expand_v": 1,
                       "intermediate_size": 48, "initializer_range": 0.3,
                       "attn": {{"layers": [1], "num_heads": 2, "num_kv_heads": 1}}}})",
                  vocab),
      "tiny");
  return model::Decoder(config, model::Parameters::initialise(config, 1, type));
}

}  // namespace mdn::evaluate
