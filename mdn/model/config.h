// The model's configuration: the published config.json keys, checked, as plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace mdn::model {

/// What mixes tokens in a layer. A decoder is a list of these.
enum class MixerKind { kMomentumDeltaNet, kAttention };

/// The published `model_type` of a mixer kind's own family.
const char* name_of(MixerKind kind);

/// How a linear-attention layer's output is gated (RMSNorm always; then times the gate).
enum class GateKind { kNone, kFull, kLowRank };

/// A momentum DeltaNet layer. K = head_dim, V = value_dim.
struct MomentumDeltaNetConfig {
  int64_t num_heads = 6;        // H: query/key heads
  int64_t num_value_heads = 6;  // HV, a multiple of H
  int64_t head_dim = 256;       // K
  int64_t value_dim = 512;      // V = int(K * expand_v)
  bool use_short_conv = true;   // else silu of the projection
  int64_t conv_size = 4;        // W
  GateKind gate = GateKind::kFull;
  int64_t gate_rank = 0;                    // of kLowRank
  bool predict_with_alpha = true;           // use_p_times_alpha: pi = alpha, else 1
  bool output_correction = true;            // q <- q - exp(D_log) k
  std::optional<double> min_log_mu = -2.0;  // floor of log mu; absent: none
  double tau_factor = 1.0;                  // tau = sqrt(hidden_size / tau_factor)
};

/// A softmax attention layer.
struct AttentionConfig {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads
  bool qkv_bias = false;
  std::optional<int64_t> window_size;  // a query sees itself and window-1 tokens before it
  double rope_theta = 10000.0;
};

/// A decoder. Read with read_config, which checks everything.
struct Config {
  std::string model_type;  // the published family name
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;        // D
  int64_t intermediate_size = 0;  // of the MLP
  double norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  std::optional<int64_t> bos_token_id, eos_token_id, pad_token_id;
  std::vector<MixerKind> layers;  // one entry a layer, from the first
  MomentumDeltaNetConfig momentum_deltanet;
  AttentionConfig attention;
  std::string json;  // the text it was read from, all keys kept: what a checkpoint writes again
};

/// Parses the text of a config.json; `name` stands for the file in errors. Throws mdn::Error for a
/// key that this program does not know (keys that Hugging Face writes into every config are let
/// through), a value of the wrong type or outside its range, or keys that contradict each other.
Config parse_config(const std::string& text, const std::string& name);

/// parse_config of a file; a directory stands for its config.json.
Config read_config(const std::string& path);

}  // namespace mdn::model
