// Gates read through the decoder: the layers' own, of every family.
#include "mdn/inspect/gates.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/core/error.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::inspect {
namespace {

model::Decoder decoder_of(model::Config config) {
  return model::Decoder(config, model::Parameters::initialise(config, 5, at::kDouble));
}

model::Config golden(const std::string& name) {
  return model::read_config(MDN_TEST_DATA "/goldens/" + name);
}

std::vector<int32_t> some_ids(int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t t = 0; t < count; ++t) {
    ids.push_back(static_cast<int32_t>(t * 37 % 101));
  }
  return ids;
}

TEST(ReadGates, AreThoseOfTheLayerAndTheLossIsTheModels) {
  const at::NoGradGuard no_grad;
  const model::Decoder decoder = decoder_of(golden("mdn"));
  const auto ids = some_ids(40);
  const Reading reading = read_gates(decoder, ids);
  ASSERT_EQ(reading.layers.size(), decoder.config().layers.size());

  // the first layer's input is the embedding
  const at::Tensor tokens = at::tensor(at::ArrayRef<int32_t>(ids), at::kLong).unsqueeze(0);
  const auto& block = decoder.weights().blocks[0];
  const at::Tensor x = ops::rms_norm(at::embedding(decoder.weights().embeddings, tokens),
                                     block.attn_norm, decoder.config().norm_eps);
  const auto& mixer = std::get<layers::MomentumDeltaNet>(block.mixer);
  const auto gates = layers::momentum_gates(mixer.options, mixer.weights, x);
  const auto& heads = reading.layers[0].heads;
  ASSERT_EQ(heads.size(), static_cast<size_t>(mixer.options.num_value_heads));
  for (size_t h = 0; h < heads.size(); ++h) {
    for (size_t t = 0; t < ids.size(); ++t) {
      const auto value = [&](const at::Tensor& gate) {
        return gate[0][static_cast<int64_t>(t)][static_cast<int64_t>(h)].item<double>();
      };
      EXPECT_EQ(heads[h].alpha[t], value(gates.alpha));
      EXPECT_EQ(heads[h].mu[t], value(gates.mu));
      EXPECT_EQ(heads[h].pi[t], heads[h].alpha[t]);
      EXPECT_NEAR(heads[h].kappa[t], heads[h].beta[t] * heads[h].mu[t], 1e-15);
      EXPECT_EQ(heads[h].lambda[t], 0);
    }
  }
  const at::Tensor targets = at::cat({tokens.narrow(1, 1, 39), at::full({1, 1}, -100)}, 1);
  EXPECT_NEAR(reading.loss, decoder.loss(tokens, targets).item<double>(), 1e-12);
}

// The second-order system is the layer's: a state of one key direction, moved by the operator.
TEST(ReadGates, FamiliesWithoutMomentumHaveAlphaAndBeta) {
  for (const char* name : {"gdn", "comba"}) {
    model::Config config = golden(name);
    const bool negative = std::string(name) == "gdn";
    config.gated_deltanet.allow_neg_eigval = negative;
    const Reading reading = read_gates(decoder_of(config), some_ids(30));
    double largest = 0;
    for (const LayerGates& layer : reading.layers) {
      ASSERT_FALSE(layer.heads.empty()) << name;
      for (const HeadGates& head : layer.heads) {
        EXPECT_FALSE(head.momentum());
        EXPECT_TRUE(head.eta.empty());
        EXPECT_NEAR(eigenvalues(head, 3)[0].real(), head.alpha[3] * (1 - head.beta[3]), 1e-12);
        for (const double beta : head.beta) {
          largest = std::max(largest, beta);
        }
      }
    }
    EXPECT_EQ(largest > 1, negative) << name;
  }
}

TEST(ReadGates, HybridsSkipAttentionAndOthersAreRefused) {
  const Reading hybrid = read_gates(decoder_of(golden("mdn_hybrid")), some_ids(20));
  size_t with = 0, without = 0;
  for (const LayerGates& layer : hybrid.layers) {
    (layer.heads.empty() ? without : with) += 1;
  }
  EXPECT_GT(with, 0u);
  EXPECT_GT(without, 0u);
  const Reading none = read_gates(decoder_of(golden("transformer")), some_ids(20));
  EXPECT_THROW(make_report({}, none.layers), Error);
}

TEST(ReadGates, VariantsSayWhatTheyCouple) {
  using layers::MomentumKind;
  for (const MomentumKind kind :
       {MomentumKind::kNone, MomentumKind::kNesterov, MomentumKind::kQuasiHyperbolic}) {
    model::Config config = golden("mdn");
    config.momentum_deltanet.momentum = kind;
    const Reading reading = read_gates(decoder_of(config), some_ids(20));
    const HeadGates& head = reading.layers[0].heads[0];
    EXPECT_EQ(head.momentum(), kind != MomentumKind::kNone);
    EXPECT_EQ(head.nu.empty(), kind != MomentumKind::kQuasiHyperbolic);
    EXPECT_EQ(head.lambda[5] > 0, kind == MomentumKind::kNesterov);
    EXPECT_EQ(head.kappa[5] > 0, kind != MomentumKind::kNone);
  }
}

TEST(ReadGates, WrongIdsAreNamed) {
  const model::Decoder decoder = decoder_of(golden("mdn"));
  const std::vector<int32_t> one = {1}, outside = {1, 1000000};
  EXPECT_THROW(read_gates(decoder, one), Error);
  EXPECT_THAT([&] { read_gates(decoder, outside); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("token 1 has id 1000000")));
}

}  // namespace
}  // namespace mdn::inspect
