// config.json: what is accepted, what is refused and how it is said.
#include "mdn/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/core/error.h"
#include "mdn/io/json.h"
#include "mdn/model/weights.h"

namespace mdn::model {
namespace {

using testing::HasSubstr;

// A small valid config with one key replaced, added or (null JSON text "") removed.
std::string with(const std::string& key, const std::string& value) {
  Json config = Json::parse(R"({"model_type": "momentum_deltanet", "hidden_size": 64,
      "num_heads": 2, "head_dim": 32, "num_hidden_layers": 2, "vocab_size": 256})");
  if (value.empty()) {
    config.erase(key);
  } else if (!key.empty()) {
    config[key] = Json::parse(value);
  }
  return config.dump();
}

std::string error_of(const std::string& text) {
  try {
    parse_config(text, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

int64_t count(const Config& config) {
  int64_t n = 0;
  for (const WeightSpec& spec : weight_table(config)) {
    n += spec.numel();
  }
  return n;
}

TEST(Config, PublishedSizesHaveThePublishedParameterCounts) {
  const std::pair<const char*, int64_t> table[] = {
      {"mdn_400m", 417'537'012},           {"mdn_1.3b", 1'462'646'004},
      {"mdn_hybrid_3_1", 430'946'400},     {"mdn_hybrid_7_1", 434'227'824},
      {"gdn_400m", 417'278'460},           {"gdn_1.3b", 1'462'129'404},
      {"gdn_hybrid_3_1", 430'650'912},     {"comba_400m", 417'278'712},
      {"comba_1.3b", 1'462'129'656},       {"comba_hybrid_3_1", 430'651'200},
      {"kda_400m", 424'384'704},           {"kda_1.3b", 1'465'722'240},
      {"kda_hybrid_3_1", 421'102'992},     {"mamba2_400m", 419'778'048},
      {"mamba2_1.3b", 1'446'620'160},      {"transformer_400m", 411'257'856},
      {"transformer_1.3b", 1'439'078'400},
  };
  for (const auto& [name, parameters] : table) {
    const Config config = read_config(fmt::format(MDN_TEST_DATA "/../../configs/{}.json", name));
    EXPECT_EQ(count(config), parameters) << name;
  }
}

TEST(Config, DefaultsAreThePublishedClass) {
  const Config c = parse_config(R"({"model_type": "momentum_deltanet"})", "config.json");
  EXPECT_EQ(c.hidden_size, 2048);
  EXPECT_EQ(c.momentum_deltanet.value_dim, 512);
  EXPECT_EQ(c.layers.size(), 21u);
  EXPECT_EQ(c.intermediate_size, 5632);
  EXPECT_EQ(c.momentum_deltanet.min_log_mu, -2.0);
}

TEST(Config, RivalsHaveTheirOwnKeys) {
  const Config gdn = parse_config(
      R"({"model_type": "gated_deltanet", "use_gate": false, "allow_neg_eigval": true})", "c");
  EXPECT_FALSE(gdn.gated_deltanet.gate);
  EXPECT_TRUE(gdn.gated_deltanet.allow_neg_eigval);
  const Config comba =
      parse_config(R"({"model_type": "comba", "use_gate": false, "use_output_gate": true})", "c");
  EXPECT_TRUE(comba.comba.gate);  // the published JSON's use_gate is ignored by its layer
  const Config transformer =
      parse_config(R"({"model_type": "transformer", "window_size": 16, "qk_norm": true})", "c");
  EXPECT_EQ(transformer.attention.size(), 24u);
  EXPECT_EQ(transformer.attention.at(23).num_heads, 32);
  EXPECT_EQ(transformer.attention.at(0).window_size, 16);
  EXPECT_TRUE(transformer.attention.at(0).qk_norm);
  EXPECT_EQ(transformer.layers, std::vector<MixerKind>(24, MixerKind::kAttention));
  EXPECT_THAT(error_of(R"({"model_type": "transformer", "head_dim": 64})"), HasSubstr("head_dim"));
  EXPECT_THAT(error_of(R"({"model_type": "transformer", "attention_bias": true})"),
              HasSubstr("attention_bias"));
}

TEST(Config, KdaKeepsItsGate) {
  const Config kda = parse_config(
      R"({"model_type": "kda", "use_gate": false, "allow_neg_eigval": true, "num_v_heads": 32})",
      "c");
  EXPECT_TRUE(kda.kimi_delta_attention.allow_neg_eigval);
  EXPECT_EQ(kda.kimi_delta_attention.num_heads, 16);
  EXPECT_EQ(kda.kimi_delta_attention.value_dim, 128);
  EXPECT_EQ(kda.layers, std::vector<MixerKind>(24, MixerKind::kKimiDeltaAttention));
}

TEST(Config, KdaDecayMayBeBounded) {
  const auto bounded = parse_config(R"({"model_type": "kda", "lower_bound": -5})", "c");
  EXPECT_EQ(bounded.kimi_delta_attention.lower_bound, -5.0);
  EXPECT_FALSE(bounded.kda_rates_start_at_one);
  const auto safe =
      parse_config(R"({"model_type": "kda", "safe_gate": true, "lower_bound": -3.5})", "c");
  EXPECT_EQ(safe.kimi_delta_attention.lower_bound, -3.5);
  EXPECT_TRUE(safe.kda_rates_start_at_one);
  EXPECT_THAT(error_of(R"({"model_type": "kda", "safe_gate": true})"), HasSubstr("safe_gate"));
  EXPECT_THAT(error_of(R"({"model_type": "kda", "lower_bound": 5})"), HasSubstr("lower_bound"));
}

TEST(Config, Mamba2HasTwoNamesForSomeKeys) {
  const auto parse = [](const std::string& keys) {
    return parse_config(R"({"model_type": "mamba2")" + keys + "}", "c");
  };
  const Config plain = parse("");
  EXPECT_EQ(plain.mamba2.num_heads, 64);
  EXPECT_EQ(plain.norm_eps, 1e-5);
  EXPECT_EQ(plain.intermediate_size, 0);
  EXPECT_TRUE(plain.residual_in_fp32);
  EXPECT_FALSE(parse(R"(, "rms_norm": false)").mamba2.norm);
  EXPECT_FALSE(parse(R"(, "rmsnorm": false, "rms_norm": false)").mamba2.norm);
  EXPECT_EQ(parse(R"(, "time_step_max": 0.2)").mamba2_init.dt_max, 0.2);
  EXPECT_EQ(parse(R"(, "dt_max": 0.3)").mamba2_init.dt_max, 0.3);
  EXPECT_EQ(parse(R"(, "time_step_floor": 0.01)").mamba2_init.dt_floor, 0.01);
  const Config limited = parse(R"(, "time_step_limit": [0.1, {"__float__": "Infinity"}])");
  EXPECT_EQ(limited.mamba2.dt_limit_low, 0.1);
  EXPECT_TRUE(std::isinf(limited.mamba2.dt_limit_high));
  EXPECT_EQ(parse(R"(, "dt_limit": [0.1, 2])").mamba2.dt_limit_high, 2);
  EXPECT_EQ(parse(R"(, "layer_norm_epsilon": 0.001)").mamba2.norm_eps, 0.001);

  const auto error = [](const std::string& keys) {
    return error_of(R"({"model_type": "mamba2")" + keys + "}");
  };
  EXPECT_THAT(error(R"(, "rmsnorm": true, "rms_norm": false)"), HasSubstr("two names"));
  EXPECT_THAT(error(R"(, "D_has_hdim": true)"), HasSubstr("D_has_hdim"));
  EXPECT_THAT(error(R"(, "conv_init": 0.1)"), HasSubstr("conv_init"));
  EXPECT_THAT(error(R"(, "num_heads": 3)"), HasSubstr("num_heads is 3"));
  EXPECT_THAT(error(R"(, "head_dim": 60)"), HasSubstr("must be a multiple of head_dim 60"));
  EXPECT_THAT(error(R"(, "n_groups": 3)"), HasSubstr("n_groups 3"));
  EXPECT_THAT(error(R"(, "dt_limit": [1, 0])"), HasSubstr("dt_limit"));
  EXPECT_THAT(error(R"(, "dt_limit": [0, "Infinity"])"), HasSubstr("__float__"));
  EXPECT_THAT(error(R"(, "dt_limit": [-1, 1])"), HasSubstr("dt_limit"));
  EXPECT_THAT(error(R"(, "A_init_range": [0, 16])"), HasSubstr("A_init_range"));
  EXPECT_THAT(error(R"(, "hidden_ratio": 4)"), HasSubstr("hidden_ratio"));
}

TEST(Config, ABareInfinityIsReadAsPythonWritesIt) {
  const Config c = parse_config(
      R"({"model_type": "mamba2", "_name_or_path": "\\\"Infinity", "dt_limit": [0.0, Infinity]})",
      "c");
  EXPECT_TRUE(std::isinf(c.mamba2.dt_limit_high));
  // What a checkpoint writes is JSON.
  const Json again = parse_json(c.json, "c");
  EXPECT_EQ(again.at("_name_or_path"), "\\\"Infinity");
  EXPECT_EQ(again.at("dt_limit").at(1).at("__float__"), "Infinity");
  EXPECT_THAT(error_of(R"({"model_type": "mamba2", "dt_limit": [-Infinity, 1]})"),
              HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of(with("vocab_size", "256").insert(1, R"("norm_eps": Infinity, )")),
              HasSubstr("norm_eps"));
}

TEST(Config, NullFloorMeansNone) {
  EXPECT_FALSE(parse_config(with("min_log_mu", "null"), "c").momentum_deltanet.min_log_mu);
}

TEST(Config, RefusesAndSaysWhy) {
  EXPECT_THAT(error_of(with("gate_kind", "1")), HasSubstr("unknown key 'gate_kind'"));
  EXPECT_THAT(error_of(with("model_type", "\"llama\"")), HasSubstr("llama"));
  EXPECT_THAT(error_of(with("model_type", "")), HasSubstr("'model_type' is missing"));
  EXPECT_THAT(error_of(with("num_v_heads", "3")), HasSubstr("num_v_heads 3"));
  EXPECT_THAT(error_of(with("tau_factor", "0.5")), HasSubstr("tau_factor"));
  EXPECT_THAT(error_of(with("hidden_act", "\"gelu\"")), HasSubstr("gelu"));
  EXPECT_THAT(error_of(with("use_l2warp", "true")), HasSubstr("use_l2warp"));
  EXPECT_THAT(error_of(with("hidden_size", "\"64\"")), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(with("hidden_size", "0")), HasSubstr("hidden_size"));
  EXPECT_THAT(error_of(with("expand_v", "0.33")), HasSubstr("expand_v"));
  EXPECT_THAT(error_of(with("attn", R"({"layers": [2], "num_heads": 2})")), HasSubstr("layers"));
  EXPECT_THAT(error_of(with("attn", R"({"layers": [1], "num_heads": 3})")), HasSubstr("num_heads"));
  EXPECT_THAT(error_of(with("attn", R"({"layers": [1], "num_heads": 2, "alibi": true})")),
              HasSubstr("'alibi'"));
  EXPECT_THAT(error_of("{"), HasSubstr("config.json"));
  EXPECT_THAT(error_of("[]"), HasSubstr("config.json"));
  const std::string gates = with("use_lora_gate", "true");
  Json contradictory = Json::parse(gates);
  contradictory["use_gate"] = false;
  EXPECT_THAT(error_of(contradictory.dump()), HasSubstr("use_gate is false"));
}

TEST(Config, AttentionLayersMayDiffer) {
  const Config c = parse_config(with("attn", R"([{"layers": [0], "num_heads": 2, "window_size": 8},
                                                 {"layers": [1], "num_heads": 4}])"),
                                "c");
  EXPECT_EQ(c.layers, std::vector<MixerKind>(2, MixerKind::kAttention));
  EXPECT_EQ(c.attention.at(0).window_size, 8);
  EXPECT_EQ(c.attention.at(1).num_heads, 4);
  EXPECT_FALSE(c.attention.at(1).window_size);
  EXPECT_THAT(error_of(with("attn", R"([{"layers": [1], "num_heads": 2},
                                        {"layers": [1], "num_heads": 4}])")),
              HasSubstr("layer 1 twice"));
  EXPECT_THAT(error_of(with("attn", R"([{"layers": [1], "num_heads": 2}, 3])")),
              HasSubstr("attn[1]"));
  EXPECT_THAT(error_of(with("attn", "3")), HasSubstr("attn"));
}

TEST(Config, AcceptsWhatHuggingFaceWrites) {
  EXPECT_EQ(error_of(with("id2label", R"({"0": "LABEL_0"})")), "");
  EXPECT_EQ(error_of(with("fuse_norm", "false")), "");
  EXPECT_EQ(error_of(with("attnres_block_size", "null")), "");
}

}  // namespace
}  // namespace mdn::model
