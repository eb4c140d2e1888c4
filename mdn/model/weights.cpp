#include "mdn/model/weights.h"

#include <fmt/format.h>

namespace mdn::model {
namespace {

// Collects the table; names are relative to `prefix`.
class Table {
 public:
  void at(std::string prefix, std::string part) {
    prefix_ = std::move(prefix);
    part_ = std::move(part);
  }
  void matrix(const std::string& name, std::vector<int64_t> shape) {
    add(name, std::move(shape), Init::kNormal, 0, true);
  }
  void vector(const std::string& name, int64_t size, Init init, double high = 0) {
    add(name, {size}, init, high, false);
  }
  std::vector<WeightSpec> take() { return std::move(entries_); }

 private:
  void add(const std::string& name, std::vector<int64_t> shape, Init init, double high,
           bool decay) {
    entries_.push_back({prefix_ + name, std::move(shape), init, high, decay, part_});
  }
  std::string prefix_, part_;
  std::vector<WeightSpec> entries_;
};

void momentum_deltanet(Table& table, const Config& c) {
  const MomentumDeltaNetConfig& m = c.momentum_deltanet;
  const int64_t D = c.hidden_size, H = m.num_heads, HV = m.num_value_heads;
  const int64_t key = H * m.head_dim, value = HV * m.value_dim;
  table.vector("A_log", H, Init::kLogUniform, 16);
  table.vector("dt_bias", HV, Init::kDt);
  table.vector("mu_bias", HV, Init::kSame);
  table.vector("Mu_log", H, Init::kLogUniform, 16);
  table.vector("log_factor", H, Init::kLogUniform, 4);
  if (m.output_correction) {
    table.vector("D_log", H, Init::kLogUniform, 1);
  }
  table.matrix("q_proj.weight", {key, D});
  table.matrix("k_proj.weight", {key, D});
  table.matrix("v_proj.weight", {value, D});
  for (const char* gate : {"a_proj", "b_proj", "m_proj", "e_proj"}) {
    table.matrix(fmt::format("{}.weight", gate), {HV, D});
  }
  if (m.use_short_conv) {
    table.matrix("q_conv1d.weight", {key, 1, m.conv_size});
    table.matrix("k_conv1d.weight", {key, 1, m.conv_size});
    table.matrix("v_conv1d.weight", {value, 1, m.conv_size});
  }
  if (m.gate == GateKind::kFull) {
    table.matrix("g_proj.weight", {value, D});
  } else if (m.gate == GateKind::kLowRank) {
    table.matrix("g_proj.0.weight", {m.gate_rank, D});
    table.matrix("g_proj.1.weight", {value, m.gate_rank});
    table.vector("g_proj.1.bias", value, Init::kZeros);
  }
  table.vector("o_norm.weight", m.value_dim, Init::kOnes);
  table.matrix("o_proj.weight", {D, value});
}

void attention(Table& table, const Config& c) {
  const AttentionConfig& a = c.attention;
  const int64_t D = c.hidden_size, kv = a.num_kv_heads * (D / a.num_heads);
  const std::pair<const char*, int64_t> projections[] = {
      {"q_proj", D}, {"k_proj", kv}, {"v_proj", kv}};
  for (const auto& [name, out] : projections) {
    table.matrix(fmt::format("{}.weight", name), {out, D});
    if (a.qkv_bias) {
      table.vector(fmt::format("{}.bias", name), out, Init::kZeros);
    }
  }
  table.matrix("o_proj.weight", {D, D});
}

}  // namespace

int64_t WeightSpec::numel() const {
  int64_t n = 1;
  for (int64_t size : shape) {
    n *= size;
  }
  return n;
}

std::vector<WeightSpec> weight_table(const Config& c) {
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  Table table;
  table.at("model.", "embeddings");
  table.matrix("embeddings.weight", {c.vocab_size, D});
  for (size_t i = 0; i < c.layers.size(); ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    table.at(layer, "norms");
    table.vector("attn_norm.weight", D, Init::kOnes);
    table.at(layer + "attn.", name_of(c.layers[i]));
    switch (c.layers[i]) {
      case MixerKind::kMomentumDeltaNet:
        momentum_deltanet(table, c);
        break;
      case MixerKind::kAttention:
        attention(table, c);
        break;
    }
    table.at(layer, "norms");
    table.vector("mlp_norm.weight", D, Init::kOnes);
    table.at(layer + "mlp.", "mlp");
    table.matrix("gate_proj.weight", {I, D});
    table.matrix("up_proj.weight", {I, D});
    table.matrix("down_proj.weight", {D, I});
  }
  table.at("model.", "norms");
  table.vector("norm.weight", D, Init::kOnes);
  if (!c.tie_word_embeddings) {
    table.at("", "head");
    table.matrix("lm_head.weight", {c.vocab_size, D});
  }
  return table.take();
}

}  // namespace mdn::model
