// The model's configuration: the published config.json keys, checked, as plain data.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "mdn/layers/options.h"

namespace mdn::model {

using layers::GateKind;

/// What mixes tokens in a layer. A decoder is a list of these.
enum class MixerKind {
  kMomentumDeltaNet,
  kAttention,
  kGatedDeltaNet,
  kComba,
  kKimiDeltaAttention,
  kMamba2
};

/// The published `model_type` of a mixer kind's own family; "attention" for attention layers.
const char* name_of(MixerKind kind);

/// How Mamba2's own parameters start.
struct Mamba2Init {
  double dt_min = 0.001, dt_max = 0.1, dt_floor = 1e-4;
  double A_low = 1, A_high = 16;
  bool rescale_residual = true;  // out_proj uniform in ±1 / sqrt(E layers), else normal
};

/// A decoder. Read with read_config, which checks everything.
struct Config {
  std::string model_type;  // the published family name
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;        // D
  int64_t intermediate_size = 0;  // of the MLP; 0: blocks have none
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool residual_in_fp32 = false;  // else of the activations' type
  std::optional<int64_t> bos_token_id, eos_token_id;
  std::optional<int64_t> pad_token_id;  // its embedding gets no gradient
  std::vector<MixerKind> layers;        // one entry a layer, from the first
  // Options of the mixers that `layers` has; the others stay at their defaults.
  layers::MomentumDeltaNetOptions momentum_deltanet;
  layers::GatedDeltaNetOptions gated_deltanet;
  layers::CombaOptions comba;
  layers::KimiDeltaAttentionOptions kimi_delta_attention;
  layers::Mamba2Options mamba2;
  Mamba2Init mamba2_init;
  bool kda_rates_start_at_one = false;                    // Kimi's A_log starts at 0, else drawn
  std::map<int64_t, layers::AttentionOptions> attention;  // of each attention layer, by its index
  std::string json;  // the text it was read from, all keys kept: what a checkpoint writes again
};

/// Parses the text of a config.json; `name` stands for the file in errors. Throws mdn::Error for a
/// key that this program does not know (keys that Hugging Face writes into every config are let
/// through), a value of the wrong type or outside its range, or keys that contradict each other.
Config parse_config(const std::string& text, const std::string& name);

/// parse_config of a file; a directory stands for its config.json.
Config read_config(const std::string& path);

}  // namespace mdn::model
