#include "mdn/model/config.h"

#include <cmath>
#include <filesystem>
#include <set>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/json.h"

namespace mdn::model {
namespace {

// Keys that Hugging Face writes into every config, or that choose speed and never the result.
const std::set<std::string>& ignored_keys() {
  static const std::set<std::string> keys = {"_attn_implementation",
                                             "_attn_implementation_autoset",
                                             "_commit_hash",
                                             "_name_or_path",
                                             "add_cross_attention",
                                             "architectures",
                                             "attn_mode",
                                             "auto_map",
                                             "bad_words_ids",
                                             "begin_suppress_tokens",
                                             "chunk_size_feed_forward",
                                             "chunk_size",
                                             "cross_attention_hidden_size",
                                             "decoder_start_token_id",
                                             "diversity_penalty",
                                             "do_sample",
                                             "dtype",
                                             "early_stopping",
                                             "encoder_no_repeat_ngram_size",
                                             "exponential_decay_length_penalty",
                                             "finetuning_task",
                                             "forced_bos_token_id",
                                             "forced_eos_token_id",
                                             "fuse_cross_entropy",
                                             "fuse_linear_cross_entropy",
                                             "fuse_norm",
                                             "fuse_swiglu",
                                             "id2label",
                                             "is_decoder",
                                             "is_encoder_decoder",
                                             "label2id",
                                             "length_penalty",
                                             "max_length",
                                             "max_position_embeddings",
                                             "min_length",
                                             "no_repeat_ngram_size",
                                             "num_beam_groups",
                                             "num_beams",
                                             "num_return_sequences",
                                             "output_attentions",
                                             "output_hidden_states",
                                             "output_scores",
                                             "prefix",
                                             "problem_type",
                                             "pruned_heads",
                                             "remove_invalid_values",
                                             "repetition_penalty",
                                             "return_dict",
                                             "return_dict_in_generate",
                                             "sep_token_id",
                                             "suppress_tokens",
                                             "task_specific_params",
                                             "temperature",
                                             "tf_legacy_loss",
                                             "tie_encoder_decoder",
                                             "tokenizer_class",
                                             "top_k",
                                             "top_p",
                                             "torch_dtype",
                                             "torchscript",
                                             "transformers_version",
                                             "typical_p",
                                             "use_bfloat16",
                                             "use_cache"};
  return keys;
}

// A JSON object that remembers which keys were read, and in the end names those that nobody read.
class Keys {
 public:
  Keys(const Json& object, const std::string& place) : object_(object, place) {}

  bool has(const std::string& key) { return see(key).has(key); }
  bool is_null(const std::string& key) {
    return see(key).json().contains(key) && !object_.has(key);
  }
  int64_t integer(const std::string& key, int64_t otherwise, int64_t lowest, int64_t highest) {
    return see(key).integer_or(key, otherwise, lowest, highest);
  }
  int64_t integer(const std::string& key, int64_t lowest, int64_t highest) {
    return see(key).integer(key, lowest, highest);
  }
  double number(const std::string& key, double otherwise, double lowest, double highest) {
    return see(key).real_or(key, otherwise, lowest, highest);
  }
  bool boolean(const std::string& key, bool otherwise) {
    return see(key).boolean_or(key, otherwise);
  }
  std::vector<int64_t> integers(const std::string& key, int64_t lowest, int64_t highest) {
    return see(key).integers(key, lowest, highest);
  }
  std::string string(const std::string& key, const std::string& otherwise,
                     std::initializer_list<std::string_view> allowed) {
    return see(key).string_or(key, otherwise, allowed);
  }
  JsonObject object(const std::string& key) { return see(key).object(key); }

  // A token id: an integer, or, as some configs have it for eos, a list whose first entry counts.
  std::optional<int64_t> token(const std::string& key, int64_t vocab_size) {
    if (!has(key)) {
      return std::nullopt;
    }
    const Json& value = object_.json().at(key);
    const Json& id = value.is_array() && !value.empty() ? value.front() : value;
    if (!id.is_number_integer()) {
      object_.fail(key, "a token id is an integer");
    }
    // Configs of small vocabularies keep the default ids, so an id outside means "none".
    const int64_t n = id.get<int64_t>();
    return n >= 0 && n < vocab_size ? std::optional(n) : std::nullopt;
  }

  // A feature that no published config uses and this program does not have.
  void only(const std::string& key, const Json& allowed) {
    if (has(key) && object_.json().at(key) != allowed) {
      object_.fail(key, fmt::format("only {} is supported", allowed.dump()));
    }
  }

  void accept(const std::string& key) { seen_.insert(key); }

  void finish() const {
    std::string unknown, known;
    for (const auto& item : object_.json().items()) {
      if (!seen_.count(item.key())) {
        unknown += fmt::format("{}'{}'", unknown.empty() ? "" : ", ", item.key());
      }
    }
    for (const std::string& key : seen_) {
      if (!ignored_keys().count(key)) {
        known += (known.empty() ? "" : ", ") + key;
      }
    }
    MDN_CHECK(unknown.empty(),
              "{}: unknown key {}: it might change the model, so it is not ignored; known: {}",
              place(), unknown, known);
  }

  const std::string& place() const { return object_.place(); }

 private:
  const JsonObject& see(const std::string& key) {
    seen_.insert(key);
    return object_;
  }

  JsonObject object_;
  std::set<std::string> seen_;
};

constexpr int64_t kMaxSize = int64_t{1} << 31;  // of any one dimension

AttentionConfig parse_attention(Keys& keys, int64_t hidden_size) {
  AttentionConfig a;
  a.num_heads = keys.integer("num_heads", 1, kMaxSize);
  a.num_kv_heads = keys.integer("num_kv_heads", a.num_heads, 1, kMaxSize);
  a.qkv_bias = keys.boolean("qkv_bias", false);
  if (keys.has("window_size")) {
    a.window_size = keys.integer("window_size", 1, kMaxSize);
  }
  a.rope_theta = keys.number("rope_theta", 10000.0, 1e-3, 1e12);
  MDN_CHECK(hidden_size % a.num_heads == 0 && (hidden_size / a.num_heads) % 2 == 0,
            "{}: num_heads {} must divide hidden_size {} into heads of even size", keys.place(),
            a.num_heads, hidden_size);
  MDN_CHECK(a.num_heads % a.num_kv_heads == 0, "{}: num_kv_heads {} must divide num_heads {}",
            keys.place(), a.num_kv_heads, a.num_heads);
  return a;
}

void parse_common(Keys& keys, Config& c) {
  c.vocab_size = keys.integer("vocab_size", 32000, 1, kMaxSize);
  c.hidden_size = keys.integer("hidden_size", 2048, 1, kMaxSize);
  c.norm_eps = keys.number("norm_eps", 1e-6, 0, 1);
  c.initializer_range = keys.number("initializer_range", 0.02, 0, 1e3);
  c.tie_word_embeddings = keys.boolean("tie_word_embeddings", false);
  c.bos_token_id = keys.token("bos_token_id", c.vocab_size);
  c.eos_token_id = keys.token("eos_token_id", c.vocab_size);
  c.pad_token_id = keys.token("pad_token_id", c.vocab_size);
  keys.string("hidden_act", "swish", {"swish", "silu"});
  keys.only("elementwise_affine", true);
  keys.only("use_l2warp", false);
  keys.only("attnres_block_size", nullptr);
  const double ratio = keys.number("hidden_ratio", 4.0, 1e-3, 1e4);
  if (keys.has("intermediate_size")) {
    c.intermediate_size = keys.integer("intermediate_size", 1, kMaxSize);
  } else {
    // 256 ceil(int(D ratio 2/3) / 256)
    const int64_t inner = static_cast<int64_t>(double(c.hidden_size) * ratio * 2.0 / 3.0);
    c.intermediate_size = 256 * ((inner + 255) / 256);
  }
}

// The layers that `attn` turns into attention, over a stack of `mixer`.
void parse_layers(Keys& keys, Config& c, MixerKind mixer) {
  const int64_t count = keys.integer("num_hidden_layers", 21, 1, 100000);
  c.layers.assign(static_cast<size_t>(count), mixer);
  if (!keys.has("attn")) {
    return;
  }
  const JsonObject attn = keys.object("attn");
  Keys sub(attn.json(), attn.place());
  c.attention = parse_attention(sub, c.hidden_size);
  for (int64_t index : sub.integers("layers", 0, count - 1)) {
    c.layers[static_cast<size_t>(index)] = MixerKind::kAttention;
  }
  sub.finish();
}

void parse_momentum_deltanet(Keys& keys, Config& c) {
  parse_common(keys, c);
  MomentumDeltaNetConfig& m = c.momentum_deltanet;
  m.num_heads = keys.integer("num_heads", 6, 1, kMaxSize);
  m.num_value_heads = keys.integer("num_v_heads", m.num_heads, 1, kMaxSize);
  MDN_CHECK(m.num_value_heads % m.num_heads == 0,
            "{}: num_v_heads {} must be a multiple of num_heads {}", keys.place(),
            m.num_value_heads, m.num_heads);
  m.head_dim = keys.integer("head_dim", 256, 1, 65536);
  const double expand = keys.number("expand_v", 2.0, 1e-6, 1e4);
  m.value_dim = static_cast<int64_t>(double(m.head_dim) * expand);
  MDN_CHECK(m.value_dim >= 1 && std::abs(double(m.value_dim) - double(m.head_dim) * expand) < 1e-6,
            "{}: expand_v {} times head_dim {} must be a whole number of value channels",
            keys.place(), expand, m.head_dim);
  m.use_short_conv = keys.boolean("use_short_conv", true);
  m.conv_size = keys.integer("conv_size", 4, 1, 1024);
  const bool gate = keys.boolean("use_gate", true);
  const bool low_rank = keys.boolean("use_lora_gate", false);
  MDN_CHECK(gate || !low_rank, "{}: use_lora_gate is true but use_gate is false", keys.place());
  m.gate = !gate ? GateKind::kNone : low_rank ? GateKind::kLowRank : GateKind::kFull;
  const int64_t rank = keys.integer("lora_gate_rank", m.value_dim, 1, kMaxSize);
  m.gate_rank = low_rank ? rank : 0;
  m.predict_with_alpha = keys.boolean("use_p_times_alpha", true);
  m.output_correction = keys.boolean("use_output_correction", true);
  m.min_log_mu = keys.number("min_log_mu", -2.0, -1e30, 0.0);
  if (keys.is_null("min_log_mu")) {
    m.min_log_mu = std::nullopt;  // unlike an absent key, which has the default
  }
  m.tau_factor = keys.number("tau_factor", 1.0, 1.0, 1e12);
  keys.accept("allow_neg_eigval");  // published, and ignored by the published layer
  parse_layers(keys, c, MixerKind::kMomentumDeltaNet);
}

}  // namespace

const char* name_of(MixerKind kind) {
  switch (kind) {
    case MixerKind::kMomentumDeltaNet:
      return "momentum_deltanet";
    case MixerKind::kAttention:
      return "attention";
  }
  return "?";
}

Config parse_config(const std::string& text, const std::string& name) {
  const Json document = parse_json(text, name);
  Keys keys(document, name);
  for (const std::string& key : ignored_keys()) {
    keys.accept(key);
  }
  Config c;
  c.json = text;
  c.model_type = keys.string("model_type", "", {"momentum_deltanet"});
  MDN_CHECK(!c.model_type.empty(), "{}: 'model_type' is missing; supported: momentum_deltanet",
            name);
  parse_momentum_deltanet(keys, c);
  keys.finish();
  return c;
}

Config read_config(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path file = fs::is_directory(path) ? fs::path(path) / "config.json" : fs::path(path);
  return parse_config(read_file(file), file.string());
}

}  // namespace mdn::model
