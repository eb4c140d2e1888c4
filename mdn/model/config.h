// The model's configuration: the published config.json keys, checked, as plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mdn/layers/options.h"

namespace mdn::model {

using layers::GateKind;

/// What mixes tokens in a layer. A decoder is a list of these.
enum class MixerKind { kMomentumDeltaNet, kAttention, kGatedDeltaNet, kComba };

/// The published `model_type` of a mixer kind's own family; "attention" for attention layers.
const char* name_of(MixerKind kind);

/// A decoder. Read with read_config, which checks everything.
struct Config {
  std::string model_type;  // the published family name
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;        // D
  int64_t intermediate_size = 0;  // of the MLP
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<int64_t> bos_token_id, eos_token_id;
  std::optional<int64_t> pad_token_id;  // its embedding gets no gradient
  std::vector<MixerKind> layers;        // one entry a layer, from the first
  // Options of the mixers that `layers` has; the others stay at their defaults.
  layers::MomentumDeltaNetOptions momentum_deltanet;
  layers::GatedDeltaNetOptions gated_deltanet;
  layers::CombaOptions comba;
  layers::AttentionOptions attention;
  std::string json;  // the text it was read from, all keys kept: what a checkpoint writes again
};

/// Parses the text of a config.json; `name` stands for the file in errors. Throws mdn::Error for a
/// key that this program does not know (keys that Hugging Face writes into every config are let
/// through), a value of the wrong type or outside its range, or keys that contradict each other.
Config parse_config(const std::string& text, const std::string& name);

/// parse_config of a file; a directory stands for its config.json.
Config read_config(const std::string& path);

}  // namespace mdn::model
