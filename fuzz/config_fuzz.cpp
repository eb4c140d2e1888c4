// config.json's own parser: an accepted configuration must have sizes that fit together, and its
// kept text must be accepted again as the same model.
#include "mdn/model/config.h"

#include "fuzz/invariant.h"
#include "mdn/core/error.h"

namespace {

using mdn::model::Config;
using mdn::model::GateKind;
using mdn::model::MixerKind;

void check(const Config& c) {
  MDN_FUZZ_REQUIRE(c.vocab_size >= 1 && c.hidden_size >= 1);
  MDN_FUZZ_REQUIRE(c.intermediate_size >= (c.model_type == "mamba2" ? 0 : 1));  // 0: no MLP
  MDN_FUZZ_REQUIRE(!c.layers.empty());
  for (const auto& id : {c.bos_token_id, c.eos_token_id, c.pad_token_id}) {
    MDN_FUZZ_REQUIRE(!id || (*id >= 0 && *id < c.vocab_size));
  }
  for (size_t layer = 0; layer < c.layers.size(); ++layer) {
    const MixerKind kind = c.layers[layer];
    if (kind == MixerKind::kAttention) {
      const auto& a = c.attention.at(static_cast<int64_t>(layer));
      MDN_FUZZ_REQUIRE(a.num_heads >= 1 && a.num_kv_heads >= 1);
      MDN_FUZZ_REQUIRE(c.hidden_size % a.num_heads == 0 && a.num_heads % a.num_kv_heads == 0);
      MDN_FUZZ_REQUIRE(!a.window_size || *a.window_size >= 1);
    } else if (kind == MixerKind::kMomentumDeltaNet) {
      const auto& m = c.momentum_deltanet;
      MDN_FUZZ_REQUIRE(m.num_heads >= 1 && m.num_value_heads % m.num_heads == 0);
      MDN_FUZZ_REQUIRE(m.head_dim >= 1 && m.value_dim >= 1 && m.conv_size >= 1);
      MDN_FUZZ_REQUIRE(m.gate != GateKind::kLowRank || m.gate_rank >= 1);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const Config config = mdn::model::parse_config(text, "fuzz.json");
    check(config);
    const Config again = mdn::model::parse_config(config.json, "again");
    MDN_FUZZ_REQUIRE(again.layers == config.layers && again.vocab_size == config.vocab_size);
  } catch (const mdn::Error&) {
  }
  return 0;
}
