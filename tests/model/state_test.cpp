// States of a decoder: split = whole, packed = one by one, saved = loaded.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "mdn/core/error.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

// float64, so that differences are rounding of 1e-16 times a few thousand operations.
constexpr double kTolerance = 1e-11;

double relative(const at::Tensor& got, const at::Tensor& want) {
  return ((got - want).norm() / want.norm()).item<double>();
}

Config config_of(const std::string& name, std::optional<int64_t> window = std::nullopt) {
  Config config = read_config(MDN_TEST_DATA "/goldens/" + name);
  for (auto& [layer, options] : config.attention) {
    options.window_size = window;
  }
  return config;
}

Decoder decoder_of(const Config& config) {
  return Decoder(config, Parameters::initialise(config, 5, at::kDouble));
}

at::Tensor some_ids(int64_t B, int64_t T) {
  return (at::arange(B * T, at::kLong) * 37 % 101).view({B, T});
}

struct Case {
  const char* model;
  std::optional<int64_t> window;
};

class State : public testing::TestWithParam<Case> {
 protected:
  at::NoGradGuard no_grad_;
};

TEST_P(State, SplitAnywhereEqualsWhole) {
  const Decoder decoder = decoder_of(config_of(GetParam().model, GetParam().window));
  const at::Tensor ids = some_ids(2, 75);
  const at::Tensor whole = decoder.hidden(ids);
  for (int64_t split : {1, 2, 3, 17, 64, 65, 74}) {
    DecoderState state = decoder.new_state();
    const at::Tensor head = decoder.hidden(ids.narrow(1, 0, split), {}, &state);
    const at::Tensor tail = decoder.hidden(ids.narrow(1, split, 75 - split), {}, &state);
    EXPECT_LT(relative(at::cat({head, tail}, 1), whole), kTolerance) << split;
    EXPECT_EQ(state.position, 75);
  }
}

TEST_P(State, TokenByTokenEqualsWhole) {
  const Decoder decoder = decoder_of(config_of(GetParam().model, GetParam().window));
  const at::Tensor ids = some_ids(2, 20);
  DecoderState state = decoder.new_state();
  std::vector<at::Tensor> steps;
  for (int64_t t = 0; t < 20; ++t) {
    steps.push_back(decoder.hidden(ids.narrow(1, t, 1), {}, &state));
  }
  EXPECT_LT(relative(at::cat(steps, 1), decoder.hidden(ids)), kTolerance);
}

TEST_P(State, PackedEqualsOneByOne) {
  const Decoder decoder = decoder_of(config_of(GetParam().model, GetParam().window));
  const at::Tensor ids = some_ids(1, 90);
  const std::vector<int64_t> cuts = {0, 1, 1, 4, 68, 90};
  const layers::Sequences packed(at::tensor(cuts, at::kLong));
  const at::Tensor together = decoder.hidden(ids, packed);
  for (size_t n = 0; n + 1 < cuts.size(); ++n) {
    const int64_t length = cuts[n + 1] - cuts[n];
    if (length > 0) {
      EXPECT_LT(relative(together.narrow(1, cuts[n], length),
                         decoder.hidden(ids.narrow(1, cuts[n], length))),
                kTolerance)
          << n;
    }
  }
}

TEST_P(State, SavedStateContinuesExactly) {
  const Config config = config_of(GetParam().model, GetParam().window);
  const Decoder decoder = decoder_of(config);
  const at::Tensor ids = some_ids(2, 40);
  DecoderState state = decoder.new_state();
  decoder.hidden(ids.narrow(1, 0, 30), {}, &state);
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / fmt::format("state_{}", GetParam().model);
  save_state(path, state, config);
  DecoderState loaded = load_state(path, config);
  const at::Tensor next = ids.narrow(1, 30, 10);
  EXPECT_TRUE(at::equal(decoder.hidden(next, {}, &loaded), decoder.hidden(next, {}, &state)));

  Config other = config;
  other.layers.pop_back();
  EXPECT_THROW(load_state(path, other), Error);
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Decoder, State,
                         testing::Values(Case{"mdn", std::nullopt}, Case{"mdn_plain", std::nullopt},
                                         Case{"mdn_hybrid", std::nullopt}, Case{"mdn_hybrid", 5},
                                         Case{"mdn_hybrid", 1}, Case{"gdn", std::nullopt},
                                         Case{"comba", std::nullopt}, Case{"kda", std::nullopt},
                                         Case{"mamba2", std::nullopt},
                                         Case{"transformer", std::nullopt}, Case{"transformer", 7}),
                         [](const testing::TestParamInfo<Case>& test) {
                           return std::string(test.param.model) +
                                  (test.param.window ? fmt::format("_window{}", *test.param.window)
                                                     : "");
                         });

TEST(Decoder, OptionsThatTheGoldensLackRun) {
  // grouped value heads, no convolution, pi = 1, grouped attention with bias
  Config config = config_of("mdn_hybrid");
  config.momentum_deltanet.num_value_heads = 6;
  config.momentum_deltanet.use_short_conv = false;
  config.momentum_deltanet.predict_with_alpha = false;
  config.momentum_deltanet.min_log_mu = std::nullopt;
  for (auto& [layer, options] : config.attention) {
    options.num_kv_heads = 1;
    options.qkv_bias = true;
  }
  at::NoGradGuard no_grad;
  const Decoder decoder = decoder_of(config);
  const at::Tensor ids = some_ids(2, 33);
  DecoderState state = decoder.new_state();
  const at::Tensor head = decoder.hidden(ids.narrow(1, 0, 20), {}, &state);
  const at::Tensor tail = decoder.hidden(ids.narrow(1, 20, 13), {}, &state);
  EXPECT_LT(relative(at::cat({head, tail}, 1), decoder.hidden(ids)), kTolerance);
}

TEST(Decoder, RivalsMixWithAttention) {
  at::NoGradGuard no_grad;
  for (const char* name : {"kda", "mamba2"}) {
    Config config = config_of(name);
    config.layers[1] = MixerKind::kAttention;
    layers::AttentionOptions& attention = config.attention[1];
    attention.num_heads = 4;
    attention.num_kv_heads = 2;
    attention.head_dim = config.hidden_size / 4;
    const Decoder decoder = decoder_of(config);
    const at::Tensor ids = some_ids(2, 33);
    DecoderState state = decoder.new_state();
    const at::Tensor head = decoder.hidden(ids.narrow(1, 0, 20), {}, &state);
    const at::Tensor tail = decoder.hidden(ids.narrow(1, 20, 13), {}, &state);
    EXPECT_LT(relative(at::cat({head, tail}, 1), decoder.hidden(ids)), kTolerance) << name;
  }
}

}  // namespace
}  // namespace mdn::model
