#include "mdn/model/blocks.h"

#include <fmt/format.h>

#include <cmath>

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
  at::Tensor matrix(const std::string& name, std::vector<int64_t> shape,
                    Init init = Init::kNormal) {
    return add({.name = name, .shape = std::move(shape), .init = init});
  }
  at::Tensor vector(const std::string& name, int64_t size, Init init) {
    return add({.name = name, .shape = {size}, .init = init, .decay = false});
  }
  at::Tensor dt(const std::string& name, int64_t size, double low = 0.001, double high = 0.1,
                double floor = 1e-4) {
    return add({.name = name,
                .shape = {size},
                .init = Init::kDt,
                .init_low = low,
                .init_high = high,
                .init_floor = floor,
                .decay = false});
  }
  at::Tensor uniform(const std::string& name, std::vector<int64_t> shape, double bound) {
    return add({.name = name,
                .shape = std::move(shape),
                .init = Init::kUniform,
                .init_low = -bound,
                .init_high = bound});
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
  const bool momentum = o.momentum != layers::MomentumKind::kNone;
  const bool mixed = o.momentum == layers::MomentumKind::kQuasiHyperbolic;
  layers::MomentumDeltaNetWeights w;
  w.A_log = walk.log_uniform("A_log", H, 0, 16);
  w.dt_bias = walk.dt("dt_bias", HV);
  if (momentum) {
    w.mu_bias = walk.vector("mu_bias", HV, Init::kSame);
    w.Mu_log = walk.log_uniform("Mu_log", H, 0, 16);
  }
  if (o.alpha_cap || o.beta_cap) {
    w.log_factor = walk.log_uniform("log_factor", H, 0, 4);
  }
  if (o.output_correction) {
    w.D_log = walk.log_uniform("D_log", H, 0, 1);
  }
  if (mixed) {
    w.nu_bias = walk.vector("nu_bias", HV, Init::kZeros);
  }
  projections(walk, o, D, w.qkv);
  w.a_proj = walk.matrix("a_proj.weight", {HV, D});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  if (momentum) {
    w.m_proj = walk.matrix("m_proj.weight", {HV, D});
  }
  w.e_proj = walk.matrix("e_proj.weight", {HV, D});
  if (mixed) {
    w.n_proj = walk.matrix("n_proj.weight", {HV, D}, Init::kZeros);
  }
  convolutions(walk, o, w.qkv);
  w.output = output(walk, o, D, o.gate, o.gate_rank);
  return {o, w};
}

// What Gated DeltaNet and Comba have in common, in this order.
void delta_weights(Walk& walk, const layers::HeadOptions& o, int64_t D, bool gate,
                   layers::GatedDeltaNetWeights& w) {
  const int64_t HV = o.num_value_heads;
  w.A_log = walk.log_uniform("A_log", HV, 0, 16);
  w.dt_bias = walk.dt("dt_bias", HV);
  projections(walk, o, D, w.qkv);
  w.a_proj = walk.matrix("a_proj.weight", {HV, D});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  convolutions(walk, o, w.qkv);
  w.output = output(walk, o, D, gate ? GateKind::kFull : GateKind::kNone);
}

layers::GatedDeltaNet gated_deltanet(Walk& walk, const Config& c) {
  const auto& o = c.gated_deltanet;
  layers::GatedDeltaNetWeights w;
  delta_weights(walk, o, c.hidden_size, o.gate, w);
  return {o, w};
}

layers::Comba comba(Walk& walk, const Config& c) {
  const auto& o = c.comba;
  layers::CombaWeights w;
  w.decay = walk.vector("decay", o.num_heads, Init::kOnes);
  w.D = walk.vector("D", o.num_heads, Init::kOnes);
  delta_weights(walk, o, c.hidden_size, o.gate, w);
  return {o, w};
}

layers::KimiDeltaAttention kimi_delta_attention(Walk& walk, const Config& c) {
  const auto& o = c.kimi_delta_attention;
  const int64_t D = c.hidden_size, HV = o.num_value_heads, rank = o.value_dim;
  layers::KimiDeltaAttentionWeights w;
  w.A_log = c.kda_rates_start_at_one ? walk.vector("A_log", HV, Init::kZeros)
                                     : walk.log_uniform("A_log", HV, 1, 16);
  w.dt_bias = walk.dt("dt_bias", HV * o.head_dim);
  projections(walk, o, D, w.qkv);
  convolutions(walk, o, w.qkv);
  w.f_proj_0 = walk.matrix("f_proj.0.weight", {rank, D});
  w.f_proj_1 = walk.matrix("f_proj.1.weight", {HV * o.head_dim, rank});
  w.b_proj = walk.matrix("b_proj.weight", {HV, D});
  w.output = output(walk, o, D, GateKind::kLowRank, rank);
  return {o, w};
}

layers::Mamba2 mamba2(Walk& walk, const Config& c) {
  const auto& o = c.mamba2;
  const Mamba2Init& init = c.mamba2_init;
  const int64_t D = c.hidden_size, E = o.inner(), H = o.num_heads;
  const int64_t in_rows = E + o.convolved() + H;
  layers::Mamba2Weights w;
  w.dt_bias = walk.dt("dt_bias", H, init.dt_min, init.dt_max, init.dt_floor);
  w.A_log = walk.log_uniform("A_log", H, init.A_low, init.A_high);
  w.D = walk.vector("D", H, Init::kOnes);
  w.conv1d = walk.matrix("conv1d.weight", {o.convolved(), 1, o.conv_size});
  if (o.conv_bias) {
    w.conv1d_bias = walk.vector("conv1d.bias", o.convolved(), Init::kZeros);
  }
  w.in_proj = walk.matrix("in_proj.weight", {in_rows, D});
  if (o.bias) {
    w.in_proj_bias = walk.vector("in_proj.bias", in_rows, Init::kZeros);
  }
  if (o.norm) {
    w.norm = walk.vector("norm.weight", E, Init::kOnes);
  }
  // Kaiming's uniform with a = sqrt 5, which is ±1 / sqrt(E), over the square root of the depth.
  w.out_proj = init.rescale_residual
                   ? walk.uniform("out_proj.weight", {D, E},
                                  1 / std::sqrt(double(E) * double(c.layers.size())))
                   : walk.matrix("out_proj.weight", {D, E});
  if (o.bias) {
    w.out_proj_bias = walk.vector("out_proj.bias", D, Init::kZeros);
  }
  return {o, w};
}

layers::Attention attention(Walk& walk, const Config& c, int64_t layer) {
  const auto& o = c.attention.at(layer);
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

layers::Mixer mixer(Walk& walk, const Config& c, size_t layer) {
  switch (c.layers[layer]) {
    case MixerKind::kMomentumDeltaNet:
      return momentum_deltanet(walk, c);
    case MixerKind::kAttention:
      return attention(walk, c, static_cast<int64_t>(layer));
    case MixerKind::kGatedDeltaNet:
      return gated_deltanet(walk, c);
    case MixerKind::kComba:
      return comba(walk, c);
    case MixerKind::kKimiDeltaAttention:
      return kimi_delta_attention(walk, c);
    case MixerKind::kMamba2:
      return mamba2(walk, c);
  }
  return {};
}

}  // namespace

Names names_of(const Config& config) {
  if (config.model_type == "mamba2") {
    return {.root = "backbone.",
            .attn_norm = "norm.weight",
            .mixer = "mixer.",
            .norm = "norm_f.weight"};
  }
  return {
      .root = "model.", .attn_norm = "attn_norm.weight", .mixer = "attn.", .norm = "norm.weight"};
}

DecoderWeights walk_weights(const Config& c, const std::function<at::Tensor(WeightSpec)>& weight) {
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  const Names names = names_of(c);
  Walk walk(weight);
  DecoderWeights all;
  walk.at("", "embeddings");
  all.embeddings = walk.matrix(embeddings_name(c), {c.vocab_size, D});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const std::string layer = fmt::format("{}layers.{}.", names.root, i);
    Block block;
    walk.at(layer, "norms");
    block.attn_norm = walk.vector(names.attn_norm, D, Init::kOnes);
    walk.at(layer + names.mixer, name_of(c.layers[i]));
    block.mixer = mixer(walk, c, i);
    if (I > 0) {
      walk.at(layer, "norms");
      block.mlp_norm = walk.vector("mlp_norm.weight", D, Init::kOnes);
      walk.at(layer + "mlp.", "mlp");
      block.mlp.gate_proj = walk.matrix("gate_proj.weight", {I, D});
      block.mlp.up_proj = walk.matrix("up_proj.weight", {I, D});
      block.mlp.down_proj = walk.matrix("down_proj.weight", {D, I});
    }
    all.blocks.push_back(std::move(block));
  }
  walk.at(names.root, "norms");
  all.norm = walk.vector(names.norm, D, Init::kOnes);
  walk.at("", "head");
  all.head =
      c.tie_word_embeddings ? all.embeddings : walk.matrix("lm_head.weight", {c.vocab_size, D});
  return all;
}

std::vector<Block> outline(const Config& config) {
  return walk_weights(config, [](WeightSpec) { return at::Tensor(); }).blocks;
}

}  // namespace mdn::model
