#include "mdn/train/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/core/error.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

using testing::HasSubstr;

struct Fixture {
  Scratch scratch;
  data::TokenDataset data{make_data(scratch)};
  ByteTokenizer tokenizer;

  std::vector<double> losses(const TrainConfig& config, int steps) const {
    Trainer trainer(config, data, tokenizer);
    std::vector<double> out;
    for (int i = 0; i < steps; ++i) {
      const StepResult result = trainer.step(1e-3);
      EXPECT_EQ(result.bad, "");
      out.push_back(result.loss);
    }
    return out;
  }
};

std::vector<at::Tensor> copies(const Trainer& trainer) {
  std::vector<at::Tensor> out;
  for (const model::Parameter& p : trainer.decoder().parameters().entries()) {
    out.push_back(p.value.detach().clone());
  }
  return out;
}

void set(Trainer& trainer, const std::string& name, double value) {
  const at::NoGradGuard no_grad;
  at::Tensor tensor = trainer.decoder().parameters().at(name);
  tensor.fill_(value);
}

// Ten steps of the golden model on the made-up text in float64: the reference operator, no float32
// anywhere. Recorded from this program; tests/python/test_train.py holds the same program against a
// trainer written apart.
constexpr double kKnownLosses[] = {5.7034326297719806, 5.5894586299895366, 5.7083548944419293,
                                   5.4155668153521672, 5.377621516770577,  5.0359439919775992,
                                   5.2319556316321369, 5.2897567656435402, 5.2918124838262308,
                                   5.1823667004411931};

TrainConfig known_run(const Scratch& scratch) {
  TrainConfig config = small_run(scratch);
  config.dtype = "float64";
  config.eps = 1e-6;
  return config;
}

TEST(Trainer, KnownLosses) {
  const Fixture f;
  const std::vector<double> losses = f.losses(known_run(f.scratch), 10);
  // Sums in another order (another CPU or thread count) move a gradient by about 100 eps = 2e-14 of
  // its size. Where a gradient nearly vanishes AdamW magnifies that by at most lr / eps = 1e3, so a
  // step moves weights by 2e-11 at worst and the loss by less; ten steps, 1e-9 with room.
  for (size_t i = 0; i < losses.size(); ++i) {
    EXPECT_NEAR(losses[i], kKnownLosses[i], 1e-9) << fmt::format("step {}: {:.17g}", i, losses[i]);
  }
}

TEST(Trainer, Float32FollowsFloat64) {
  const Fixture f;
  TrainConfig config = known_run(f.scratch);
  config.dtype = "float32";
  const std::vector<double> losses = f.losses(config, 10);
  // The first loss is a forward pass: the tolerance of the goldens. Then each step adds what
  // float32 gradients (1e-4 relative, the goldens' bound) change of an update of about lr
  // sqrt(parameters).
  EXPECT_NEAR(losses[0], kKnownLosses[0], 1e-5 * kKnownLosses[0]);
  for (size_t i = 1; i < losses.size(); ++i) {
    EXPECT_NEAR(losses[i], kKnownLosses[i], 1e-4 * static_cast<double>(i) * kKnownLosses[i]);
  }
}

TEST(Trainer, AccumulationEqualsOneLargeBatch) {
  const Fixture f;
  TrainConfig config = known_run(f.scratch);
  config.rows = 4;
  const std::vector<double> whole = f.losses(config, 4);
  config.rows = 1;
  config.accumulate = 4;
  const std::vector<double> parts = f.losses(config, 4);
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_NEAR(whole[i], parts[i], 1e-9) << i;  // as KnownLosses: another order of sums
  }
}

// Documents of unlike lengths: micro-batches with unlike numbers of targets.
TEST(Trainer, AccumulationWeighsByTargets) {
  Scratch scratch;
  data::PrepareOptions options;
  std::string text;
  for (int i = 1; i < 60; ++i) {
    text += made_up_text(static_cast<size_t>(1 + i * i % 37)).substr(0, 1 + i * i % 37) + "|";
  }
  write_file_atomically(scratch / "text.txt", text);
  options.sources = {scratch / "text.txt"};
  options.output = scratch / "data";
  options.documents.separator = "|";
  options.val_fraction = 0;
  data::prepare(ByteTokenizer(), "bytes", options);
  const data::TokenDataset data(options.output);
  const ByteTokenizer tokenizer;
  TrainConfig config = known_run(scratch);
  config.order = "packed";
  config.separate_documents = true;
  const auto losses = [&](int64_t rows, int64_t accumulate) {
    config.rows = rows;
    config.accumulate = accumulate;
    Trainer trainer(config, data, tokenizer);
    return std::vector<double>{trainer.step(1e-3).loss, trainer.step(1e-3).loss};
  };
  const auto whole = losses(4, 1), parts = losses(1, 4);
  EXPECT_NEAR(whole[0], parts[0], 1e-9);
  EXPECT_NEAR(whole[1], parts[1], 1e-9);
}

TEST(Trainer, LossThatIsNotFiniteLeavesEverythingAsItWas) {
  const Fixture f;
  Trainer trainer(small_run(f.scratch), f.data, f.tokenizer);
  trainer.step(1e-3);
  const auto norm = trainer.decoder().parameters().at("model.norm.weight").detach().clone();
  set(trainer, "model.norm.weight", std::nan(""));
  const auto before = copies(trainer);
  EXPECT_EQ(trainer.step(1e-3).bad, "loss");
  const auto after = copies(trainer);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(at::equal(before[i].nan_to_num(7), after[i].nan_to_num(7)));
  }
  // Mended, training goes on with the optimiser as it was.
  {
    const at::NoGradGuard no_grad;
    at::Tensor target = trainer.decoder().parameters().at("model.norm.weight");
    target.copy_(norm);
  }
  EXPECT_EQ(trainer.step(1e-3).bad, "");
}

TEST(Trainer, FirstBadGradientIsNamedInTableOrder) {
  const Fixture f;
  Trainer trainer(small_run(f.scratch), f.data, f.tokenizer);
  // exp(1000) is infinite, alpha = 0 all the same and the loss finite; alpha's gradient is 0 times
  // infinity, and spreads to everything below: the second layer's own parameters, and before.
  set(trainer, "model.layers.1.attn.A_log", 1000);
  const auto before = copies(trainer);
  const StepResult result = trainer.step(1e-3);
  EXPECT_TRUE(std::isfinite(result.loss));
  EXPECT_EQ(result.bad, "model.embeddings.weight");
  const auto after = copies(trainer);
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_TRUE(at::equal(before[i], after[i]));
  }
}

TEST(Trainer, LoadsWhatItSavedAndContinuesBitForBit) {
  const Fixture f;
  for (const char* dtype : {"float32", "float64", "bfloat16"}) {
    TrainConfig config = small_run(f.scratch);
    config.dtype = dtype;
    Trainer one(config, f.data, f.tokenizer);
    for (int i = 0; i < 3; ++i) {
      one.step(1e-3);
    }
    const std::filesystem::path folder = f.scratch / dtype;
    std::filesystem::create_directory(folder);
    TrainerState state;
    state.step = 3;
    one.save(folder, state);
    config.init_from = "";
    config.seed = 5;
    config.data_seed = 11;
    Trainer two(config, f.data, f.tokenizer);
    EXPECT_EQ(two.load(folder).optimizer_step, 3);
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(one.step(1e-3).loss, two.step(1e-3).loss) << dtype;
    }
    const auto a = copies(one), b = copies(two);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(at::equal(a[i], b[i])) << dtype << " " << i;
    }
  }
}

TEST(Trainer, CheckpointsThatDoNotFitAreRefused) {
  const Fixture f;
  TrainConfig config = small_run(f.scratch);
  Trainer one(config, f.data, f.tokenizer);
  const std::filesystem::path folder = f.scratch / "c";
  std::filesystem::create_directory(folder);
  one.save(folder, {});
  const auto refusal = [&](const TrainConfig& other) -> std::string {
    try {
      Trainer(other, f.data, f.tokenizer).load(folder);
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal(config), "accepted");
  TrainConfig other = config;
  other.length = 12;
  EXPECT_THAT(refusal(other), HasSubstr("rows of 24 tokens, this run of 12"));
  other = config;
  other.data_seed = 1;
  EXPECT_THAT(refusal(other), HasSubstr("seed"));
  other = config;
  other.dtype = "float64";
  EXPECT_THAT(refusal(other), HasSubstr("float64"));
  other = config;
  other.model.replace(other.model.find("1e-06"), 5, "1e-05");
  EXPECT_THAT(refusal(other), HasSubstr("norm_eps"));
}

TEST(Trainer, EvaluationIsTheMeanOverTheSplit) {
  const Fixture f;
  TrainConfig config = known_run(f.scratch);
  config.eval_rows = 3;
  const Evaluation few = Trainer(config, f.data, f.tokenizer).evaluate(0);
  config.eval_rows = 1;
  const Evaluation one = Trainer(config, f.data, f.tokenizer).evaluate(0);
  EXPECT_EQ(few.targets, f.data.val().tokens() - 1);
  EXPECT_EQ(one.targets, few.targets);
  EXPECT_NEAR(one.loss, few.loss, 1e-12);
  EXPECT_NEAR(one.bits_per_byte, one.loss / std::log(2.0), 1e-12);  // a token is a byte here
  EXPECT_LT(Trainer(config, f.data, f.tokenizer).evaluate(48).targets, 100);
}

TEST(Trainer, VocabularyMustHoldTheData) {
  const Fixture f;
  TrainConfig config = small_run(f.scratch);
  config.init_from = "";
  const size_t at = config.model.find("\"vocab_size\": 256");
  ASSERT_NE(at, std::string::npos);
  config.model.replace(at, 17, "\"vocab_size\": 255");
  EXPECT_THROW(Trainer(config, f.data, f.tokenizer), Error);
  config = small_run(f.scratch);
  config.device = "abacus";
  EXPECT_THROW(Trainer(config, f.data, f.tokenizer), Error);
}

}  // namespace
}  // namespace mdn::train
