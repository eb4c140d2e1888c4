// A block that makes what lies between its projections again in the backward pass, against the same
// block composed of its layers: result and every gradient. On the CPU, where nothing but this test
// takes the former.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "mdn/layers/residual.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

class RecomputedBlock : public testing::TestWithParam<const char*> {};

void compare(const char* name, at::ScalarType type, int64_t B, const layers::Sequences& sequences,
             double allowed) {
  const Config config = read_config(std::string(MDN_TEST_DATA "/goldens/") + name);
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

INSTANTIATE_TEST_SUITE_P(Families, RecomputedBlock,
                         testing::Values("gdn", "comba", "kda", "mamba2"),
                         [](const auto& test) { return std::string(test.param); });

TEST(RecomputedBlock, LeavesOthersAlone) {
  const Config config = read_config(MDN_TEST_DATA "/goldens/transformer");
  const Decoder decoder(config, Parameters::initialise(config, 3, at::kFloat));
  const Block& block = decoder.weights().blocks[0];
  EXPECT_FALSE(layers::recomputed_residual_mix(block.mixer, block.attn_norm, config.norm_eps,
                                               at::ones({1, 2, config.hidden_size}), at::kFloat, {})
                   .has_value());
}

}  // namespace
}  // namespace mdn::model
