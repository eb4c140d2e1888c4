// A block that makes what lies between its projections again in the backward pass, against the same
// block composed of its layers: result and every gradient. On the CPU, where nothing but this test
// takes the former.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "mdn/io/json.h"
#include "mdn/layers/residual.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

// Each mixer that comes apart, with the options that change what there is to take apart.
struct Case {
  const char* name;
  const char* golden;
  const char* keys;  // in place of those of the golden model's config
};

class RecomputedBlock : public testing::TestWithParam<Case> {};

Config config_of(const Case& c) {
  Json json = read_json(fmt::format(MDN_TEST_DATA "/goldens/{}/config.json", c.golden));
  json.update(parse_json(c.keys, c.name));
  return parse_config(json.dump(), c.name);
}

void compare(const Case& c, at::ScalarType type, int64_t B, const layers::Sequences& sequences,
             double allowed) {
  const Config config = config_of(c);
  Parameters parameters = Parameters::initialise(config, 3, type);
  parameters.set_requires_grad(true);
  const Decoder decoder(config, std::move(parameters));
  const Block& block = decoder.weights().blocks[0];
  const at::Tensor x =
      at::sin(at::arange(B * 70 * config.hidden_size, at::kDouble).view({B, 70, -1}))
          .to(type)
          .requires_grad_();
  std::vector<at::Tensor> leaves = {x};
  for (const Parameter& p : decoder.parameters().entries()) {
    if (p.spec.name.find("layers.0.") != std::string::npos && p.spec.part != "mlp" &&
        p.spec.name.find("mlp_norm") == std::string::npos) {
      leaves.push_back(p.value);
    }
  }
  const auto results = [&](const at::Tensor& y) {
    auto all = torch::autograd::grad({y}, leaves, {at::cos(y.detach())});
    all.push_back(y.detach());
    return all;
  };
  const auto want = results(layers::residual_mix(block.mixer, block.attn_norm, config.norm_eps, x,
                                                 type, sequences, nullptr));
  const auto y = layers::recomputed_residual_mix(block.mixer, block.attn_norm, config.norm_eps, x,
                                                 type, sequences);
  ASSERT_TRUE(y.has_value());
  const auto got = results(*y);
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_LE((got[i] - want[i]).norm().item<double>(), allowed * want[i].norm().item<double>())
        << i << " of " << want.size() << " (x, parameters, result)";
  }
}

// float64: rounding of 1e-16 times some hundred operations.
TEST_P(RecomputedBlock, EqualsTheComposition) {
  compare(GetParam(), at::kDouble, 2, {}, 1e-12);
}

TEST_P(RecomputedBlock, KeepsPackedSequencesApart) {
  const at::Tensor cu = at::tensor(std::vector<int64_t>{0, 1, 3, 40, 70}, at::kLong);
  compare(GetParam(), at::kDouble, 1, layers::Sequences(cu), 1e-12);
}

// float32: the same operators on the same numbers but for the order of sums in products.
TEST_P(RecomputedBlock, TakesTheFusedOperators) {
  compare(GetParam(), at::kFloat, 2, {}, 1e-4);
}

INSTANTIATE_TEST_SUITE_P(
    Families, RecomputedBlock,
    testing::Values(Case{"gdn", "gdn", "{}"}, Case{"comba", "comba", "{}"},
                    Case{"kda", "kda", "{}"}, Case{"mamba2", "mamba2", "{}"},
                    Case{"mdn", "mdn", "{}"}, Case{"mdn_plain", "mdn_plain", "{}"},
                    Case{"mdn_lora", "mdn_lora", "{}"},
                    Case{"no_momentum", "mdn", R"({"use_momentum": false})"},
                    Case{"no_momentum_bare", "mdn_plain",
                         R"({"use_momentum": false, "use_alpha_cap": false, "use_beta_cap": false,
                             "use_p_times_alpha": false, "use_short_conv": false})"}),
    [](const auto& test) { return std::string(test.param.name); });

class WholeBlock : public testing::TestWithParam<Case> {};

TEST_P(WholeBlock, IsLeftAlone) {
  const Config config = config_of(GetParam());
  const Decoder decoder(config, Parameters::initialise(config, 3, at::kFloat));
  const Block& block = decoder.weights().blocks[0];
  EXPECT_FALSE(layers::recomputed_residual_mix(block.mixer, block.attn_norm, config.norm_eps,
                                               at::ones({1, 2, config.hidden_size}), at::kFloat, {})
                   .has_value());
}

INSTANTIATE_TEST_SUITE_P(
    Others, WholeBlock,
    testing::Values(Case{"transformer", "transformer", "{}"},
                    Case{"nesterov", "mdn", R"({"momentum_kind": "nesterov"})"},
                    Case{"quasi_hyperbolic", "mdn", R"({"momentum_kind": "quasi_hyperbolic"})"},
                    Case{"mamba2_biases", "mamba2", R"({"use_bias": true})"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace mdn::model
