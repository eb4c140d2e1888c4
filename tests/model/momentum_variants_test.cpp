// The ablations of the momentum layer and its other kinds of momentum: their keys, weights, gates,
// states, and that each learns.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <filesystem>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/json.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

using layers::MomentumKind;

// float64: rounding of 1e-16 times a few thousand operations.
constexpr double kTolerance = 1e-11;

/// The golden model's config with further keys.
Config config_with(const OrderedJson& keys) {
  OrderedJson json = OrderedJson::parse(read_file(MDN_TEST_DATA "/goldens/mdn/config.json"));
  json.update(keys);
  return parse_config(json.dump(), "config.json");
}

Decoder decoder_of(const Config& config) {
  return Decoder(config, Parameters::initialise(config, 5, at::kDouble));
}

/// Steps that are mixed start at nu = 1; this one's differ from token to token.
Decoder mixed(const Config& config) {
  Parameters parameters = Parameters::initialise(config, 5, at::kDouble);
  at::manual_seed(3);
  for (Parameter& p : parameters.entries()) {
    if (p.spec.name.ends_with("n_proj.weight")) {
      p.value.normal_(0, 0.3);
    } else if (p.spec.name.ends_with("nu_bias")) {
      p.value.fill_(-0.5);
    }
  }
  return Decoder(config, std::move(parameters));
}

at::Tensor some_ids(int64_t B, int64_t T) {
  return (at::arange(B * T, at::kLong) * 37 % 101).view({B, T});
}

double relative(const at::Tensor& got, const at::Tensor& want) {
  return ((got - want).norm() / want.norm()).item<double>();
}

const layers::MomentumDeltaNet& first_layer(const Decoder& decoder) {
  return std::get<layers::MomentumDeltaNet>(decoder.weights().blocks[0].mixer);
}

// ---- keys and weights -----------------------------------------------------------------------

TEST(MomentumKeys, DefaultsAreThePublishedLayer) {
  const Config plain = config_with(OrderedJson::object());
  EXPECT_TRUE(plain.momentum_deltanet.published_rule());
  const Config spelled = config_with({{"use_momentum", true},
                                      {"momentum_kind", "heavy_ball"},
                                      {"use_alpha_cap", true},
                                      {"use_beta_cap", true}});
  EXPECT_TRUE(spelled.momentum_deltanet.published_rule());
  EXPECT_EQ(weight_table(plain).size(), weight_table(spelled).size());
}

TEST(MomentumKeys, EachTurnsOnePartOff) {
  const auto options = [](const OrderedJson& keys) { return config_with(keys).momentum_deltanet; };
  EXPECT_EQ(options({{"use_momentum", false}}).momentum, MomentumKind::kNone);
  EXPECT_EQ(options({{"momentum_kind", "nesterov"}}).momentum, MomentumKind::kNesterov);
  EXPECT_EQ(options({{"momentum_kind", "quasi_hyperbolic"}}).momentum,
            MomentumKind::kQuasiHyperbolic);
  EXPECT_FALSE(options({{"use_alpha_cap", false}}).alpha_cap);
  EXPECT_TRUE(options({{"use_alpha_cap", false}}).beta_cap);
  EXPECT_FALSE(options({{"use_beta_cap", false}}).beta_cap);
  EXPECT_FALSE(options({{"use_beta_cap", false}}).published_rule());
  // the paper's other two have published keys
  EXPECT_FALSE(options({{"use_output_correction", false}}).output_correction);
  EXPECT_FALSE(options({{"min_log_mu", nullptr}}).min_log_mu.has_value());
}

TEST(MomentumKeys, WrongOnesAreNamed) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  EXPECT_THAT(
      [&] {
        config_with({{"momentum_kind", "adam"}});
      },
      ThrowsMessage<Error>(HasSubstr("momentum_kind")));
  EXPECT_THAT(
      [&] {
        config_with({{"use_momentum", false}, {"momentum_kind", "nesterov"}});
      },
      ThrowsMessage<Error>(HasSubstr("nothing to act on")));
}

std::vector<std::string> names_in_first_layer(const Config& config) {
  std::vector<std::string> names;
  const std::string prefix = "model.layers.0.attn.";
  for (const WeightSpec& spec : weight_table(config)) {
    if (spec.name.starts_with(prefix)) {
      names.push_back(spec.name.substr(prefix.size()));
    }
  }
  return names;
}

TEST(MomentumWeights, AreThereExactlyWhereTheyAreUsed) {
  using testing::Contains;
  using testing::Not;
  const auto none = names_in_first_layer(config_with({{"use_momentum", false}}));
  for (const char* name : {"m_proj.weight", "mu_bias", "Mu_log", "nu_bias"}) {
    EXPECT_THAT(none, Not(Contains(name)));
  }
  EXPECT_THAT(none, Contains("log_factor"));
  const auto uncapped =
      names_in_first_layer(config_with({{"use_alpha_cap", false}, {"use_beta_cap", false}}));
  EXPECT_THAT(uncapped, Not(Contains("log_factor")));
  const auto mixed_names =
      names_in_first_layer(config_with({{"momentum_kind", "quasi_hyperbolic"}}));
  EXPECT_THAT(mixed_names, Contains("n_proj.weight"));
  EXPECT_THAT(mixed_names, Contains("nu_bias"));
}

// ---- what is computed -----------------------------------------------------------------------

TEST(MomentumRules, QuasiHyperbolicStartsAsThePublishedModel) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids = some_ids(2, 75);
  const Decoder published = decoder_of(config_with(OrderedJson::object()));
  const Decoder start = decoder_of(config_with({{"momentum_kind", "quasi_hyperbolic"}}));
  EXPECT_LT(relative(start.hidden(ids), published.hidden(ids)), kTolerance);
  EXPECT_GT(relative(mixed(start.config()).hidden(ids), published.hidden(ids)), 1e-6);
  const Decoder ahead = decoder_of(config_with({{"momentum_kind", "nesterov"}}));
  EXPECT_GT(relative(ahead.hidden(ids), published.hidden(ids)), 1e-6);
}

// With mu = 0 the published layer is the one without momentum.
TEST(MomentumRules, WithoutMomentumAsMuVanishes) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids = some_ids(2, 75);
  const Config none = config_with({{"use_momentum", false}});
  const Config free = config_with({{"min_log_mu", nullptr}});
  Parameters parameters = Parameters::initialise(free, 5, at::kDouble);
  Parameters fewer = Parameters::initialise(none, 1, at::kDouble);
  for (Parameter& p : fewer.entries()) {
    p.value.copy_(parameters.at(p.spec.name));
  }
  for (Parameter& p : parameters.entries()) {
    if (p.spec.name.ends_with("Mu_log") || p.spec.name.ends_with("mu_bias")) {
      p.value.fill_(20);  // mu = exp(-exp(20) softplus(20 + ..)) = 0
    }
  }
  const Decoder with(free, std::move(parameters)), without(none, std::move(fewer));
  EXPECT_LT(relative(without.hidden(ids), with.hidden(ids)), kTolerance);
}

TEST(MomentumRules, CapsBoundTheGatesAndGoWhenTurnedOff) {
  const at::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 50, 1024}, at::kDouble);
  for (const bool capped : {true, false}) {
    const Decoder decoder =
        decoder_of(config_with({{"use_alpha_cap", capped}, {"use_beta_cap", capped}}));
    const auto& [o, w] = first_layer(decoder);
    const auto gates = layers::momentum_gates(o, w, x.narrow(2, 0, decoder.config().hidden_size));
    const double sum = (gates.alpha + gates.beta).max().item<double>();
    EXPECT_EQ(sum <= 1, capped) << sum;  // cos² + sin²
    // without caps: the plain sigmoid and decay
    if (!capped) {
      const at::Tensor beta =
          at::linear(x.narrow(2, 0, decoder.config().hidden_size), w.b_proj).sigmoid();
      EXPECT_LT(relative(gates.beta, beta), kTolerance);
    }
  }
}

// ---- states ---------------------------------------------------------------------------------

struct Variant {
  std::string name;
  OrderedJson keys;
};

class MomentumVariant : public testing::TestWithParam<Variant> {
 protected:
  Decoder decoder() const { return mixed(config_with(GetParam().keys)); }
};

TEST_P(MomentumVariant, SplitAndTokenByTokenEqualTheWhole) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const at::Tensor ids = some_ids(2, 75);
  const at::Tensor whole = model.hidden(ids);
  for (const int64_t split : {1, 17, 64, 74}) {
    DecoderState state = model.new_state();
    const at::Tensor head = model.hidden(ids.narrow(1, 0, split), {}, &state);
    const at::Tensor tail = model.hidden(ids.narrow(1, split, 75 - split), {}, &state);
    EXPECT_LT(relative(at::cat({head, tail}, 1), whole), kTolerance) << split;
  }
  DecoderState state = model.new_state();
  std::vector<at::Tensor> steps;
  for (int64_t t = 0; t < 75; ++t) {
    steps.push_back(model.hidden(ids.narrow(1, t, 1), {}, &state));
  }
  EXPECT_LT(relative(at::cat(steps, 1), whole), kTolerance);
}

TEST_P(MomentumVariant, PackedEqualsOneByOne) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const at::Tensor ids = some_ids(1, 90);
  const std::vector<int64_t> cuts = {0, 1, 1, 4, 70, 90};
  const at::Tensor together = model.hidden(ids, layers::Sequences(at::tensor(cuts, at::kLong)));
  for (size_t n = 0; n + 1 < cuts.size(); ++n) {
    const int64_t length = cuts[n + 1] - cuts[n];
    if (length > 0) {
      EXPECT_LT(relative(together.narrow(1, cuts[n], length),
                         model.hidden(ids.narrow(1, cuts[n], length))),
                kTolerance)
          << n;
    }
  }
}

TEST_P(MomentumVariant, SavedStateContinuesExactlyAndKeepsNoMInVain) {
  const at::NoGradGuard no_grad;
  const Decoder model = decoder();
  const at::Tensor ids = some_ids(2, 40);
  DecoderState state = model.new_state();
  model.hidden(ids.narrow(1, 0, 30), {}, &state);
  const auto& layer = std::get<layers::MomentumDeltaNetState>(state.layers[0]);
  EXPECT_EQ(layer.M.defined(), first_layer(model).options.momentum != MomentumKind::kNone);
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / ("variant_" + GetParam().name);
  save_state(path, state, model.config());
  DecoderState loaded = load_state(path, model.config());
  const at::Tensor next = ids.narrow(1, 30, 10);
  EXPECT_TRUE(at::equal(model.hidden(next, {}, &loaded), model.hidden(next, {}, &state)));
  std::filesystem::remove(path);
}

// Every weight gets a gradient, and 30 steps of plain gradient descent on one batch lower its loss.
TEST_P(MomentumVariant, Learns) {
  const Config config = config_with(GetParam().keys);
  Parameters parameters = Parameters::initialise(config, 5, at::kDouble);
  parameters.set_requires_grad(true);
  std::vector<at::Tensor> weights;
  for (const Parameter& p : parameters.entries()) {
    weights.push_back(p.value);
  }
  const Decoder model(config, std::move(parameters));
  const at::Tensor ids = some_ids(2, 70);
  const at::Tensor targets = at::roll(ids, -1, 1);
  double first = 0, last = 0;
  for (int step = 0; step < 30; ++step) {
    const at::Tensor loss = model.loss(ids, targets);
    last = loss.item<double>();
    first = step == 0 ? last : first;
    const auto gradients = torch::autograd::grad({loss}, weights);
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < weights.size(); ++i) {
      ASSERT_TRUE(gradients[i].defined()) << model.parameters().entries()[i].spec.name;
      weights[i].sub_(gradients[i], 0.5);
    }
    if (step == 0) {
      for (size_t i = 0; i < weights.size(); ++i) {
        const std::string& name = model.parameters().entries()[i].spec.name;
        if (name.ends_with("n_proj.weight") || name.ends_with("nu_bias")) {
          EXPECT_GT(gradients[i].norm().item<double>(), 0) << name;
        }
      }
    }
  }
  EXPECT_LT(last, first - 0.3);
}

INSTANTIATE_TEST_SUITE_P(
    All, MomentumVariant,
    testing::Values(
        Variant{"no_momentum", {{"use_momentum", false}}},
        Variant{"no_momentum_pi_1", {{"use_momentum", false}, {"use_p_times_alpha", false}}},
        Variant{"no_alpha_cap", {{"use_alpha_cap", false}}},
        Variant{"no_caps", {{"use_alpha_cap", false}, {"use_beta_cap", false}}},
        Variant{"nesterov", {{"momentum_kind", "nesterov"}}},
        Variant{"nesterov_pi_1", {{"momentum_kind", "nesterov"}, {"use_p_times_alpha", false}}},
        Variant{"quasi_hyperbolic", {{"momentum_kind", "quasi_hyperbolic"}}}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace mdn::model
