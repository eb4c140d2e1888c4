#include "mdn/model/blocks.h"

#include <fmt/format.h>

namespace mdn::model {
namespace {

// Hands descriptions to `weight`; names are relative to `prefix`.
class Walk {
 public:
  explicit Walk(const std::function<at::Tensor(WeightSpec)>& weight) : weight_(weight) {}

  void at(std::string prefix, std::string part) {
    prefix_ = std::move(prefix);
    part_ = std::move(part);
  }
  at::Tensor matrix(const std::string& name, std::vector<int64_t> shape) {
    return add({.name = name, .shape = std::move(shape)});
  }
  at::Tensor vector(const std::string& name, int64_t size, Init init) {
    return add({.name = name, .shape = {size}, .init = init, .decay = false});
  }
  at::Tensor log_uniform(const std::string& name, int64_t size, double low, double high) {
    return add({.name = name,
                .shape = {size},
                .init = Init::kLogUniform,
                .init_low = low,
                .init_high = high,
                .decay = false});
  }

 private:
  at::Tensor add(WeightSpec spec) {
    spec.name = prefix_ + spec.name;
    spec.part = part_;
    return weight_(std::move(spec));
  }

  const std::function<at::Tensor(WeightSpec)>& weight_;
  std::string prefix_, part_;
};

void projections(Walk& walk, const layers::HeadOptions& o, int64_t D, layers::QkvWeights& w) {
  w.q_proj = walk.matrix("q_proj.weight", {o.keys(), D});
  w.k_proj = walk.matrix("k_proj.weight", {o.keys(), D});
  w.v_proj = walk.matrix("v_proj.weight", {o.values(), D});
}

void convolutions(Walk& walk, const layers::HeadOptions& o, layers::QkvWeights& w) {
  if (o.use_short_conv) {
    w.q_conv1d = walk.matrix("q_conv1d.weight", {o.keys(), 1, o.conv_size});
    w.k_conv1d = walk.matrix("k_conv1d.weight", {o.keys(), 1, o.conv_size});
    w.v_conv1d = walk.matrix("v_conv1d.weight", {o.values(), 1, o.conv_size});
  }
}

layers::OutputWeights output(Walk& walk, const layers::HeadOptions& o, int64_t D, GateKind gate,
                             int64_t rank = 0) {
  layers::OutputWeights w;
  if (gate == GateKind::kFull) {
    w.g_proj = walk.matrix("g_proj.weight", {o.values(), D});
  } else if (gate == GateKind::kLowRank) {
    w.g_proj_0 = walk.matrix("g_proj.0.weight", {rank, D});
    w.g_proj_1 = walk.matrix("g_proj.1.weight", {o.values(), rank});
    w.g_proj_1_bias = walk.vector("g_proj.1.bias", o.values(), Init::kZeros);
  }
  w.o_norm = walk.vector("o_norm.weight", o.value_dim, Init::kOnes);
  w.o_proj = walk.matrix("o_proj.weight", {D, o.values()});
  return w;
}

layers::MomentumDeltaNet momentum_deltanet(Walk& walk, const Config& c) {
  const auto& o = c.momentum_deltanet;
  const int64_t D = c.hidden_size, H = o.num_heads, HV = o.num_value_heads;
  layers::MomentumDeltaNetWeights w;
  w.A_log = walk.log_uniform("A_log", H, 0, 16);
  w.dt_bias = walk.vector("dt_bias", HV, Init::kDt);
  w.mu_bias = walk.vector("mu_bias", HV, Init::kSame);
  w.Mu_log = walk.log_uniform("Mu_log", H, 0, 16);
  w.log_factor = walk.log_uniform("log_factor", H, 0, 4);
  if (o.output_correction) {
    w.D_log = walk.log_uniform("D_log", H, 0, 1);
  }
  projections(walk, o, D, w.qkv);
  w.a_proj = walk.matrix("a_proj.weight", {HV, D});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  w.m_proj = walk.matrix("m_proj.weight", {HV, D});
  w.e_proj = walk.matrix("e_proj.weight", {HV, D});
  convolutions(walk, o, w.qkv);
  w.output = output(walk, o, D, o.gate, o.gate_rank);
  return {o, w};
}

layers::GatedDeltaNet gated_deltanet(Walk& walk, const Config& c) {
  const auto& o = c.gated_deltanet;
  const int64_t D = c.hidden_size, HV = o.num_value_heads;
  layers::GatedDeltaNetWeights w;
  w.A_log = walk.log_uniform("A_log", HV, 0, 16);
  w.dt_bias = walk.vector("dt_bias", HV, Init::kDt);
  projections(walk, o, D, w.qkv);
  w.a_proj = walk.matrix("a_proj.weight", {HV, D});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  convolutions(walk, o, w.qkv);
  w.output = output(walk, o, D, o.gate ? GateKind::kFull : GateKind::kNone);
  return {o, w};
}

layers::Comba comba(Walk& walk, const Config& c) {
  const auto& o = c.comba;
  const int64_t D = c.hidden_size, H = o.num_heads, HV = o.num_value_heads;
  layers::CombaWeights w;
  w.decay = walk.vector("decay", H, Init::kOnes);
  w.D = walk.vector("D", H, Init::kOnes);
  w.A_log = walk.log_uniform("A_log", HV, 0, 16);
  w.dt_bias = walk.vector("dt_bias", HV, Init::kDt);
  projections(walk, o, D, w.qkv);
  w.a_proj = walk.matrix("a_proj.weight", {HV, D});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  convolutions(walk, o, w.qkv);
  w.output = output(walk, o, D, o.gate ? GateKind::kFull : GateKind::kNone);
  return {o, w};
}

layers::Attention attention(Walk& walk, const Config& c) {
  const auto& o = c.attention;
  const int64_t D = c.hidden_size, kv = o.num_kv_heads * o.head_dim;
  layers::AttentionWeights w;
  const auto projection = [&](const char* name, int64_t out, at::Tensor& weight, at::Tensor& bias) {
    weight = walk.matrix(fmt::format("{}.weight", name), {out, D});
    if (o.qkv_bias) {
      bias = walk.vector(fmt::format("{}.bias", name), out, Init::kZeros);
    }
  };
  projection("q_proj", D, w.q_proj, w.q_bias);
  projection("k_proj", kv, w.k_proj, w.k_bias);
  projection("v_proj", kv, w.v_proj, w.v_bias);
  w.o_proj = walk.matrix("o_proj.weight", {D, D});
  if (o.qk_norm) {
    w.q_norm = walk.vector("q_norm.weight", o.head_dim, Init::kOnes);
    w.k_norm = walk.vector("k_norm.weight", o.head_dim, Init::kOnes);
  }
  return {o, w};
}

layers::Mixer mixer(Walk& walk, const Config& c, MixerKind kind) {
  switch (kind) {
    case MixerKind::kMomentumDeltaNet:
      return momentum_deltanet(walk, c);
    case MixerKind::kAttention:
      return attention(walk, c);
    case MixerKind::kGatedDeltaNet:
      return gated_deltanet(walk, c);
    case MixerKind::kComba:
      return comba(walk, c);
  }
  return {};
}

}  // namespace

DecoderWeights walk_weights(const Config& c, const std::function<at::Tensor(WeightSpec)>& weight) {
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  Walk walk(weight);
  DecoderWeights all;
  walk.at("", "embeddings");
  all.embeddings = walk.matrix(embeddings_name(c), {c.vocab_size, D});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    Block block;
    walk.at(layer, "norms");
    block.attn_norm = walk.vector("attn_norm.weight", D, Init::kOnes);
    walk.at(layer + "attn.", name_of(c.layers[i]));
    block.mixer = mixer(walk, c, c.layers[i]);
    walk.at(layer, "norms");
    block.mlp_norm = walk.vector("mlp_norm.weight", D, Init::kOnes);
    walk.at(layer + "mlp.", "mlp");
    block.mlp.gate_proj = walk.matrix("gate_proj.weight", {I, D});
    block.mlp.up_proj = walk.matrix("up_proj.weight", {I, D});
    block.mlp.down_proj = walk.matrix("down_proj.weight", {D, I});
    all.blocks.push_back(std::move(block));
  }
  walk.at("model.", "norms");
  all.norm = walk.vector("norm.weight", D, Init::kOnes);
  walk.at("", "head");
  all.head =
      c.tie_word_embeddings ? all.embeddings : walk.matrix("lm_head.weight", {c.vocab_size, D});
  return all;
}

std::vector<Block> outline(const Config& config) {
  return walk_weights(config, [](WeightSpec) { return at::Tensor(); }).blocks;
}

}  // namespace mdn::model
