#include "mdn/evaluate/scorer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/evaluate/tiny_model.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

// log-probabilities from one forward pass over one sequence, without batches or pieces
std::vector<double> one_by_one(const model::Decoder& decoder, const Sequence& sequence) {
  const at::NoGradGuard no_grad;
  const at::Tensor ids = at::tensor(sequence.inputs, at::kLong).unsqueeze(0);
  const at::Tensor logits = decoder.logits(decoder.hidden(ids)).squeeze(0);
  const at::Tensor log_probs = logits.log_softmax(1);
  std::vector<double> values;
  for (size_t t = 0; t < sequence.targets.size(); ++t) {
    if (sequence.targets[t] != kIgnoredTarget) {
      values.push_back(log_probs[static_cast<int64_t>(t)][sequence.targets[t]].item<double>());
    }
  }
  return values;
}

std::vector<Sequence> some_sequences(int64_t vocab) {
  std::vector<Sequence> sequences;
  uint64_t counter = 0;
  for (const int64_t length : {5, 1, 33, 12, 64, 12, 7}) {
    Sequence sequence;
    for (int64_t t = 0; t < length; ++t) {
      sequence.inputs.push_back(static_cast<int64_t>(data::keyed_below(1, counter++, vocab)));
      const auto target = static_cast<int64_t>(data::keyed_below(2, counter++, vocab));
      sequence.targets.push_back(t % 3 == 1 ? kIgnoredTarget : target);
    }
    sequences.push_back(std::move(sequence));
  }
  sequences[2].targets.assign(33, kIgnoredTarget);  // one that asks for nothing
  return sequences;
}

// In float64, where batching, padding and pieces may differ by rounding alone: 2^-53 times the size
// of the logits and the length of the sums, far below 1e-10.
constexpr double kTolerance = 1e-10;

TEST(Scorer, BatchesPaddingAndPiecesChangeNothing) {
  const model::Decoder decoder = tiny_decoder(at::kDouble);
  const auto sequences = some_sequences(decoder.config().vocab_size);
  for (const int64_t budget : {1, 8, 24, 100, 1000}) {
    Scorer scorer(decoder, at::kCPU, budget);
    int64_t done = 0, total = 0;
    const auto scores = scorer.score(sequences, [&](int64_t now, int64_t all) {
      EXPECT_GT(now, done);
      done = now;
      total = all;
    });
    EXPECT_EQ(done, total);
    EXPECT_EQ(scorer.tokens(), total);
    ASSERT_EQ(scores.size(), sequences.size());
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto want = one_by_one(decoder, sequences[i]);
      ASSERT_EQ(scores[i].log_probs.size(), want.size());
      for (size_t k = 0; k < want.size(); ++k) {
        EXPECT_NEAR(scores[i].log_probs[k], want[k], kTolerance) << "budget " << budget;
      }
    }
  }
}

TEST(Scorer, MatchesAreArgmaxes) {
  const model::Decoder decoder = tiny_decoder(at::kDouble);
  const at::NoGradGuard no_grad;
  Sequence sequence{.inputs = {3, 1, 4, 1, 5}, .targets = {}};
  const at::Tensor best =
      decoder.logits(decoder.hidden(at::tensor(sequence.inputs, at::kLong).unsqueeze(0)))
          .argmax(-1)
          .squeeze(0);
  for (int64_t t = 0; t < 5; ++t) {
    sequence.targets.push_back(best[t].item<int64_t>());
  }
  Sequence wrong = sequence;
  wrong.targets[2] = (wrong.targets[2] + 1) % decoder.config().vocab_size;
  Scorer scorer(decoder, at::kCPU, 100);
  const auto scores = scorer.score(std::vector<Sequence>{sequence, wrong});
  EXPECT_TRUE(scores[0].all_matched());
  EXPECT_FALSE(scores[1].all_matched());
  EXPECT_THAT(scores[1].matched, testing::ElementsAre(1, 1, 0, 1, 1));
}

TEST(Scorer, RefusesWhatIsNoToken) {
  const model::Decoder decoder = tiny_decoder(at::kFloat);
  Scorer scorer(decoder, at::kCPU, 100);
  const int64_t vocab = decoder.config().vocab_size;
  const auto error = [&](Sequence sequence) {
    return error_of([&] { scorer.score(std::vector<Sequence>{std::move(sequence)}); });
  };
  EXPECT_THAT(error({{vocab}, {0}}), testing::HasSubstr("outside"));
  EXPECT_THAT(error({{-100}, {0}}), testing::HasSubstr("outside"));
  EXPECT_THAT(error({{0}, {vocab}}), testing::HasSubstr("outside"));
  EXPECT_THAT(error({{0, 1}, {0}}), testing::HasSubstr("2 inputs with 1 targets"));
  EXPECT_TRUE(scorer.score({}).empty());
}

TEST(Scorer, ReportsWeightsThatAreNotFinite) {
  model::Decoder decoder = tiny_decoder(at::kFloat);
  {
    const at::NoGradGuard no_grad;
    decoder.parameters().entries().front().value.fill_(std::nan(""));
  }
  Scorer scorer(decoder, at::kCPU, 100);
  EXPECT_THAT(error_of([&] {
                scorer.score(std::vector<Sequence>{{{0}, {0}}});
              }),
              testing::HasSubstr("not finite"));
}

}  // namespace
}  // namespace mdn::evaluate
