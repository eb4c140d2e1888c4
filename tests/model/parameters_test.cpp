// Initial values, loading and saving of parameters.
#include "mdn/model/parameters.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "mdn/core/error.h"

namespace mdn::model {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

Config golden_config(const std::string& name) {
  return read_config(MDN_TEST_DATA "/goldens/" + name);
}

fs::path golden_weights(const std::string& name) {
  return fs::path(MDN_TEST_DATA "/goldens") / name / "weights.safetensors";
}

class Folder {
 public:
  Folder()
      : path_(fs::path(testing::TempDir()) /
              ::testing::UnitTest::GetInstance()->current_test_info()->name()) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Folder() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

TEST(Parameters, TheTableIsTheGoldenFilesNames) {
  for (const char* name : {"mdn", "mdn_plain", "mdn_lora", "mdn_hybrid", "kda", "mamba2"}) {
    EXPECT_NO_THROW(Parameters::load(golden_config(name), golden_weights(name))) << name;
  }
}

TEST(Parameters, InitialValuesFollowThePublishedDistributions) {
  Config config = golden_config("mdn");
  config.momentum_deltanet.num_heads = config.momentum_deltanet.num_value_heads = 4096;
  config.momentum_deltanet.head_dim = config.momentum_deltanet.value_dim = 1;
  const Parameters p = Parameters::initialise(config, 1);
  const auto attn = [&](const char* name) {
    return p.at(std::string("model.layers.0.attn.") + name);
  };
  // Sample moments of n = 4096 draws lie within 5 standard errors with probability 1 - 6e-7.
  const auto mean = [](const at::Tensor& x) { return x.mean().item<double>(); };
  EXPECT_NEAR(mean(attn("A_log").exp()), 8, 5 * 16 / std::sqrt(12 * 4096.0));
  EXPECT_NEAR(mean(attn("log_factor").exp()), 2, 5 * 4 / std::sqrt(12 * 4096.0));
  EXPECT_NEAR(mean(attn("D_log").exp()), 0.5, 5 * 1 / std::sqrt(12 * 4096.0));
  const at::Tensor dt = at::softplus(attn("dt_bias"));
  EXPECT_NEAR(mean(dt.log()), 0.5 * (std::log(0.1) + std::log(0.001)),
              5 * std::log(100.0) / std::sqrt(12 * 4096.0));
  EXPECT_TRUE(at::equal(attn("dt_bias"), attn("mu_bias")));
  EXPECT_FALSE(at::equal(attn("A_log"), attn("Mu_log")));
  EXPECT_TRUE(attn("A_log").isfinite().all().item<bool>());
  const at::Tensor q = attn("q_proj.weight");
  const double n = static_cast<double>(q.numel());
  EXPECT_NEAR(q.std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(2 * n));
  EXPECT_TRUE(at::equal(attn("o_norm.weight"), at::ones({1})));
  EXPECT_TRUE(
      at::equal(q, Parameters::initialise(config, 1).at("model.layers.0.attn.q_proj.weight")));
  EXPECT_FALSE(
      at::equal(q, Parameters::initialise(config, 2).at("model.layers.0.attn.q_proj.weight")));
}

TEST(Parameters, RivalsStartAsPublished) {
  Config kda = golden_config("kda");
  kda.kimi_delta_attention.num_heads = kda.kimi_delta_attention.num_value_heads = 4096;
  kda.kimi_delta_attention.head_dim = kda.kimi_delta_attention.value_dim = 1;
  const at::Tensor A = Parameters::initialise(kda, 1).at("model.layers.0.attn.A_log").exp();
  EXPECT_GE(A.min().item<double>(), 1 - 1e-6);
  EXPECT_NEAR(A.mean().item<double>(), 8.5, 5 * 15 / std::sqrt(12 * 4096.0));

  Config mamba2 = golden_config("mamba2");
  mamba2.mamba2.num_heads = 4096;
  mamba2.mamba2.head_dim = 1;
  mamba2.mamba2_init = {.dt_min = 0.01, .dt_max = 0.2, .dt_floor = 0.02, .A_low = 2, .A_high = 3};
  const Parameters p = Parameters::initialise(mamba2, 1);
  const auto mixer = [&](const char* name) {
    return p.at(std::string("backbone.layers.0.mixer.") + name);
  };
  const at::Tensor dt = at::softplus(mixer("dt_bias"));
  EXPECT_NEAR(dt.min().item<double>(), 0.02, 1e-6);
  EXPECT_NEAR(dt.max().item<double>(), 0.2, 0.002);
  EXPECT_NEAR(mixer("A_log").exp().mean().item<double>(), 2.5, 5 / std::sqrt(12 * 4096.0));
  EXPECT_TRUE(at::equal(mixer("D"), at::ones({4096})));
  // uniform within ±1 / sqrt(4096 channels x 2 layers)
  const at::Tensor out = mixer("out_proj.weight");
  const double bound = 1 / std::sqrt(8192.0), n = static_cast<double>(out.numel());
  EXPECT_LE(out.abs().max().item<double>(), bound);
  // The standard deviation's own standard error is that of a uniform's square: below 0.5 / sqrt(n).
  EXPECT_NEAR(out.std().item<double>(), bound / std::sqrt(3.0), 5 * bound * 0.5 / std::sqrt(n));
  mamba2.mamba2_init.rescale_residual = false;
  EXPECT_NEAR(Parameters::initialise(mamba2, 1)
                  .at("backbone.layers.0.mixer.out_proj.weight")
                  .std()
                  .item<double>(),
              0.02, 5 * 0.02 / std::sqrt(2 * n));
}

TEST(Parameters, VectorsTakeNoDecay) {
  for (const WeightSpec& spec : weight_table(golden_config("mdn_lora"))) {
    EXPECT_EQ(spec.decay, spec.shape.size() > 1) << spec.name;
  }
}

TEST(Parameters, SavedShardsLoadBackEqual) {
  const Folder folder;
  const Config config = golden_config("mdn");
  const Parameters p = Parameters::initialise(config, 3);
  p.save(folder.path(), 40'000);
  EXPECT_TRUE(fs::exists(folder.path() / kModelIndexFile));
  const Parameters back = Parameters::load(config, folder.path());
  for (const Parameter& entry : p.entries()) {
    EXPECT_TRUE(at::equal(entry.value, back.at(entry.spec.name))) << entry.spec.name;
  }
}

std::string load_error(const Config& config, const fs::path& path) {
  try {
    Parameters::load(config, path);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Parameters, WrongFilesAreNamed) {
  EXPECT_THAT(load_error(golden_config("mdn_lora"), golden_weights("mdn")), HasSubstr("shape"));
  Config config = golden_config("mdn");
  config.layers.push_back(MixerKind::kMomentumDeltaNet);
  EXPECT_THAT(load_error(config, golden_weights("mdn")),
              HasSubstr("missing weights: model.layers.2"));
  config.layers.resize(1);
  EXPECT_THAT(load_error(config, golden_weights("mdn")),
              HasSubstr("weights that the config does not have: model.layers.1"));
}

}  // namespace
}  // namespace mdn::model
