#include "mdn/model/config.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <string_view>
#include <tuple>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/model/config_keys.h"

namespace mdn::model {
namespace {

layers::AttentionOptions parse_attention(Keys& keys, int64_t hidden_size, int64_t default_heads) {
  layers::AttentionOptions a;
  a.num_heads = default_heads > 0 ? keys.integer("num_heads", default_heads, 1, kMaxSize)
                                  : keys.integer("num_heads", 1, kMaxSize);
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
  a.head_dim = hidden_size / a.num_heads;
  return a;
}

void parse_common(Keys& keys, Config& c, const std::string& eps_key = "norm_eps",
                  double norm_eps = 1e-6) {
  c.vocab_size = keys.integer("vocab_size", 32000, 1, kMaxSize);
  c.hidden_size = keys.integer("hidden_size", 2048, 1, kMaxSize);
  c.norm_eps = keys.number(eps_key, norm_eps, 0, 1);
  c.initializer_range = keys.number("initializer_range", 0.02, 0, 1e3);
  c.tie_word_embeddings = keys.boolean("tie_word_embeddings", false);
  c.bos_token_id = keys.token("bos_token_id", c.vocab_size);
  c.eos_token_id = keys.token("eos_token_id", c.vocab_size);
  c.pad_token_id = keys.token("pad_token_id", c.vocab_size);
  keys.string("hidden_act", "swish", {"swish", "silu"});
  keys.only("elementwise_affine", true);
  keys.only("use_l2warp", false);
  keys.only("attnres_block_size", nullptr);
}

void parse_mlp(Keys& keys, Config& c) {
  const double ratio = keys.number("hidden_ratio", 4.0, 1e-3, 1e4);
  if (keys.has("intermediate_size")) {
    c.intermediate_size = keys.integer("intermediate_size", 1, kMaxSize);
  } else {
    // 256 ceil(int(D ratio 2/3) / 256)
    const int64_t inner = static_cast<int64_t>(double(c.hidden_size) * ratio * 2.0 / 3.0);
    c.intermediate_size = 256 * ((inner + 255) / 256);
  }
}

void parse_heads(Keys& keys, const Config& c, const layers::HeadOptions& defaults, double expand_v,
                 layers::HeadOptions& o) {
  o.num_heads = keys.integer("num_heads", defaults.num_heads, 1, kMaxSize);
  o.num_value_heads = keys.integer("num_v_heads", o.num_heads, 1, kMaxSize);
  MDN_CHECK(o.num_value_heads % o.num_heads == 0,
            "{}: num_v_heads {} must be a multiple of num_heads {}", keys.place(),
            o.num_value_heads, o.num_heads);
  o.head_dim = keys.integer("head_dim", defaults.head_dim, 1, 65536);
  const double expand = keys.number("expand_v", expand_v, 1e-6, 1e4);
  o.value_dim = static_cast<int64_t>(double(o.head_dim) * expand);
  MDN_CHECK(o.value_dim >= 1 && std::abs(double(o.value_dim) - double(o.head_dim) * expand) < 1e-6,
            "{}: expand_v {} times head_dim {} must be a whole number of value channels",
            keys.place(), expand, o.head_dim);
  o.use_short_conv = keys.boolean("use_short_conv", true);
  o.conv_size = keys.integer("conv_size", 4, 1, 1024);
  o.norm_eps = c.norm_eps;
}

// `layers` entries of `mixer`, of which `attn`, or each of a list of them, makes some attention.
void parse_layers(Keys& keys, Config& c, MixerKind mixer, int64_t default_count) {
  const int64_t count = keys.integer("num_hidden_layers", default_count, 1, 100000);
  c.layers.assign(static_cast<size_t>(count), mixer);
  for (const JsonObject& attn : keys.objects("attn")) {
    Keys sub(attn.json(), attn.place());
    const layers::AttentionOptions options = parse_attention(sub, c.hidden_size, 0);
    for (int64_t index : sub.integers("layers", 0, count - 1)) {
      MDN_CHECK(c.attention.emplace(index, options).second, "{}: layers names layer {} twice",
                keys.place(), index);
      c.layers[static_cast<size_t>(index)] = MixerKind::kAttention;
    }
    sub.finish();
  }
}

// Keys of this program alone, whose defaults are the published layer (docs/momentum.md).
void parse_momentum_study(Keys& keys, layers::MomentumDeltaNetOptions& m) {
  using layers::MomentumKind;
  const bool momentum = keys.boolean("use_momentum", true);
  const std::string kind =
      keys.string("momentum_kind", "heavy_ball", {"heavy_ball", "nesterov", "quasi_hyperbolic"});
  MDN_CHECK(momentum || !keys.has("momentum_kind"),
            "{}: use_momentum is false, so momentum_kind '{}' has nothing to act on", keys.place(),
            kind);
  m.momentum = !momentum                    ? MomentumKind::kNone
               : kind == "nesterov"         ? MomentumKind::kNesterov
               : kind == "quasi_hyperbolic" ? MomentumKind::kQuasiHyperbolic
                                            : MomentumKind::kHeavyBall;
  m.alpha_cap = keys.boolean("use_alpha_cap", true);
  m.beta_cap = keys.boolean("use_beta_cap", true);
}

void parse_momentum_deltanet(Keys& keys, Config& c) {
  parse_common(keys, c);
  parse_mlp(keys, c);
  layers::MomentumDeltaNetOptions& m = c.momentum_deltanet;
  parse_heads(keys, c, m, 2.0, m);
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
  const double tau_factor = keys.number("tau_factor", 1.0, 1.0, 1e12);
  m.tau = std::sqrt(static_cast<double>(c.hidden_size) / tau_factor);
  keys.accept("allow_neg_eigval");  // published, and ignored by the published layer
  parse_momentum_study(keys, m);
  parse_layers(keys, c, MixerKind::kMomentumDeltaNet, 21);
}

void parse_gated_deltanet(Keys& keys, Config& c) {
  parse_common(keys, c);
  parse_mlp(keys, c);
  layers::GatedDeltaNetOptions& g = c.gated_deltanet;
  parse_heads(keys, c, g, 2.0, g);
  g.gate = keys.boolean("use_gate", true);
  g.allow_neg_eigval = keys.boolean("allow_neg_eigval", false);
  parse_layers(keys, c, MixerKind::kGatedDeltaNet, 21);
}

void parse_comba(Keys& keys, Config& c) {
  parse_common(keys, c);
  parse_mlp(keys, c);
  parse_heads(keys, c, c.comba, 2.0, c.comba);
  c.comba.gate = keys.boolean("use_output_gate", true);
  // Published, and never passed on to the published layer, which always has both steps.
  for (const char* key :
       {"use_gate", "use_inner_decay", "use_output_correction", "correction_factor"}) {
    keys.accept(key);
  }
  parse_layers(keys, c, MixerKind::kComba, 21);
}

void parse_kda(Keys& keys, Config& c) {
  parse_common(keys, c);
  parse_mlp(keys, c);
  layers::KimiDeltaAttentionOptions& k = c.kimi_delta_attention;
  parse_heads(keys, c, {.num_heads = 16, .head_dim = 128}, 1.0, k);
  k.allow_neg_eigval = keys.boolean("allow_neg_eigval", false);
  keys.accept("use_gate");  // published; the layer always has its gate
  if (keys.has("lower_bound")) {
    k.lower_bound = keys.number("lower_bound", 0, -1e30, -1e-30);
  }
  // Lets the published kernels rely on the bound; for the model it says how A_log starts.
  c.kda_rates_start_at_one = keys.boolean("safe_gate", false);
  MDN_CHECK(!c.kda_rates_start_at_one || k.lower_bound,
            "{}: safe_gate is true, which needs a lower_bound", keys.place());
  parse_layers(keys, c, MixerKind::kKimiDeltaAttention, 24);
}

void parse_mamba2(Keys& keys, Config& c) {
  parse_common(keys, c, keys.either("norm_eps", "layer_norm_epsilon"), 1e-5);
  // Unlike the other families' embeddings, the published class's have no padding row.
  c.pad_token_id = std::nullopt;
  c.residual_in_fp32 = keys.boolean("residual_in_fp32", true);
  layers::Mamba2Options& m = c.mamba2;
  m.head_dim = keys.integer("head_dim", 64, 1, 65536);
  m.state_size = keys.integer("state_size", 128, 1, 65536);
  const double expand = keys.number("expand", 2, 1e-6, 1e4);
  const double inner = expand * double(c.hidden_size);
  m.num_heads = static_cast<int64_t>(inner) / m.head_dim;
  MDN_CHECK(m.num_heads >= 1 && double(m.inner()) == inner,
            "{}: expand {} times hidden_size {} must be a multiple of head_dim {}", keys.place(),
            expand, c.hidden_size, m.head_dim);
  const int64_t heads = keys.integer("num_heads", m.num_heads, 1, kMaxSize);
  MDN_CHECK(heads == m.num_heads,
            "{}: num_heads is {}; expand, hidden_size and head_dim make it {}", keys.place(), heads,
            m.num_heads);
  m.num_groups = keys.integer("n_groups", 1, 1, kMaxSize);
  MDN_CHECK(m.num_heads % m.num_groups == 0, "{}: n_groups {} must divide the {} heads",
            keys.place(), m.num_groups, m.num_heads);
  m.conv_size = keys.integer("conv_kernel", 4, 1, 1024);
  m.bias = keys.boolean("use_bias", false);
  m.conv_bias = keys.boolean("use_conv_bias", true);
  m.norm = keys.boolean(keys.either("rmsnorm", "rms_norm"), true);
  m.norm_before_gate = keys.boolean("norm_before_gate", false);
  m.norm_eps = c.norm_eps;
  std::tie(m.dt_limit_low, m.dt_limit_high) =
      keys.range(keys.either("dt_limit", "time_step_limit"), {m.dt_limit_low, m.dt_limit_high});
  MDN_CHECK(m.dt_limit_low >= 0, "{}: dt_limit starts at {}; a step is not negative", keys.place(),
            m.dt_limit_low);
  Mamba2Init& init = c.mamba2_init;
  init.dt_min = keys.number(keys.either("dt_min", "time_step_min"), init.dt_min, 1e-30, 1e3);
  init.dt_max = keys.number(keys.either("dt_max", "time_step_max"), init.dt_max, init.dt_min, 1e3);
  init.dt_floor =
      keys.number(keys.either("dt_init_floor", "time_step_floor"), init.dt_floor, 1e-30, 1e3);
  std::tie(init.A_low, init.A_high) = keys.range("A_init_range", {init.A_low, init.A_high});
  MDN_CHECK(init.A_low > 0 && std::isfinite(init.A_high),
            "{}: A_init_range is [{}, {}]; it must be positive and finite", keys.place(),
            init.A_low, init.A_high);
  init.rescale_residual = keys.boolean("rescale_prenorm_residual", true);
  keys.only("conv_init", nullptr);
  keys.only("D_has_hdim", false);
  keys.accept("time_step_rank");  // published, and of no effect
  parse_layers(keys, c, MixerKind::kMamba2, 48);
}

void parse_transformer(Keys& keys, Config& c) {
  parse_common(keys, c);
  parse_mlp(keys, c);
  layers::AttentionOptions options = parse_attention(keys, c.hidden_size, 32);
  options.qk_norm = keys.boolean("qk_norm", false);
  keys.only("attention_bias", false);
  const int64_t count = keys.integer("num_hidden_layers", 24, 1, 100000);
  c.layers.assign(static_cast<size_t>(count), MixerKind::kAttention);
  for (int64_t layer = 0; layer < count; ++layer) {
    c.attention[layer] = options;
  }
}

// Python writes an infinite number as a bare Infinity, which JSON does not have; newer versions of
// the published library as {"__float__": "Infinity"}. The latter in place of the former.
std::string with_infinities_as_json(const std::string& text) {
  constexpr std::string_view kWord = "Infinity";
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!in_string && text.compare(i, kWord.size(), kWord) == 0 && (i == 0 || text[i - 1] != '-')) {
      out += R"({"__float__": "Infinity"})";
      i += kWord.size() - 1;
      continue;
    }
    in_string = in_string != (text[i] == '"');
    out += text[i];
    if (in_string && text[i] == '\\' && i + 1 < text.size()) {
      out += text[++i];
    }
  }
  return out;
}

using Parse = void (*)(Keys&, Config&);

constexpr std::pair<std::string_view, Parse> kFamilies[] = {
    {"momentum_deltanet", parse_momentum_deltanet},
    {"gated_deltanet", parse_gated_deltanet},
    {"comba", parse_comba},
    {"kda", parse_kda},
    {"mamba2", parse_mamba2},
    {"transformer", parse_transformer},
};

}  // namespace

const char* name_of(MixerKind kind) {
  switch (kind) {
    case MixerKind::kMomentumDeltaNet:
      return "momentum_deltanet";
    case MixerKind::kAttention:
      return "attention";
    case MixerKind::kGatedDeltaNet:
      return "gated_deltanet";
    case MixerKind::kComba:
      return "comba";
    case MixerKind::kKimiDeltaAttention:
      return "kda";
    case MixerKind::kMamba2:
      return "mamba2";
  }
  return "?";
}

Config parse_config(const std::string& text, const std::string& name) {
  const std::string json = with_infinities_as_json(text);
  const Json document = parse_json(json, name);
  Keys keys(document, name);
  for (const std::string& key : ignored_keys()) {
    keys.accept(key);
  }
  std::string families;
  for (const auto& [family, parse] : kFamilies) {
    families += fmt::format("{}{}", families.empty() ? "" : ", ", family);
  }
  Config c;
  c.json = json;
  MDN_CHECK(keys.has("model_type"), "{}: 'model_type' is missing; supported: {}", name, families);
  c.model_type = keys.string("model_type", "", {});
  for (const auto& [family, parse] : kFamilies) {
    if (c.model_type == family) {
      parse(keys, c);
      keys.finish();
      return c;
    }
  }
  MDN_THROW("{}: model_type is '{}'; supported: {}", name, c.model_type, families);
}

Config read_config(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path file = fs::is_directory(path) ? fs::path(path) / "config.json" : fs::path(path);
  return parse_config(read_file(file), file.string());
}

}  // namespace mdn::model
