#include "mdn/evaluate/synthetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "mdn/evaluate/vocabulary.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::HasSubstr;

SyntheticTask task(const std::string& text, int64_t vocab = 256) {
  return SyntheticTask(TaskSpec::parse(text), vocab);
}

Sequence example(const SyntheticTask& task, int64_t index, int64_t seed = 0) {
  return task.example(seed, Purpose::kEvaluate, index);
}

TEST(Synthetic, Mqar) {
  const auto mqar = task("mqar:length=64,pairs=8,vocab=128,fill=0");
  for (int64_t index = 0; index < 50; ++index) {
    const Sequence got = example(mqar, index);
    ASSERT_EQ(got.inputs.size(), 64U);
    ASSERT_EQ(got.targets.size(), 64U);
    std::map<int64_t, int64_t> values;
    std::set<int64_t> different;
    for (size_t i = 0; i < 16; i += 2) {
      EXPECT_TRUE(got.inputs[i] >= 1 && got.inputs[i] < 64);
      EXPECT_TRUE(got.inputs[i + 1] >= 64 && got.inputs[i + 1] < 128);
      values[got.inputs[i]] = got.inputs[i + 1];
      different.insert(got.inputs[i + 1]);
      EXPECT_EQ(got.targets[i], kIgnoredTarget);
      EXPECT_EQ(got.targets[i + 1], kIgnoredTarget);
    }
    EXPECT_EQ(values.size(), 8U);
    EXPECT_EQ(different.size(), 8U);
    std::set<int64_t> asked;
    for (size_t i = 16; i < 64; ++i) {
      if (got.targets[i] == kIgnoredTarget) {
        EXPECT_EQ(got.inputs[i], 0);
      } else {
        EXPECT_EQ(i % 2, 0U);
        EXPECT_EQ(got.targets[i], values.at(got.inputs[i]));
        asked.insert(got.inputs[i]);
      }
    }
    EXPECT_EQ(asked.size(), 8U);
  }
}

TEST(Synthetic, MqarFillsTheRestAtRandom) {
  const auto filled = task("mqar:length=64,pairs=4,vocab=128");
  const auto empty = task("mqar:length=64,pairs=4,vocab=128,fill=0");
  const Sequence a = example(filled, 3), b = example(empty, 3);
  EXPECT_EQ(a.targets, b.targets);
  int64_t zeros = 0;
  for (size_t i = 0; i < a.inputs.size(); ++i) {
    if (b.inputs[i] != 0) {
      EXPECT_EQ(a.inputs[i], b.inputs[i]);
    }
    zeros += a.inputs[i] == 0 ? 1 : 0;
  }
  EXPECT_LT(zeros, 6);  // 48 draws of 128 ids: six zeros have a chance of 1e-6
}

// With one pair the gap's distribution is the power law itself: p(x) ~ x^(power - 1).
TEST(Synthetic, MqarGapsFollowThePowerLaw) {
  constexpr int64_t kDraws = 20000, kPlaces = 15;
  for (const double power : {0.01, 1.0}) {
    const auto mqar = task(fmt::format("mqar:length=32,pairs=1,power={},fill=0", power));
    std::vector<double> seen(kPlaces, 0.0);
    for (int64_t index = 0; index < kDraws; ++index) {
      const Sequence got = example(mqar, index);
      for (size_t i = 2; i < 32; ++i) {
        seen[(i - 2) / 2] += got.targets[i] != kIgnoredTarget ? 1 : 0;
      }
    }
    double total = 0;
    for (int64_t x = 1; x <= kPlaces; ++x) {
      total += std::pow(static_cast<double>(x), power - 1);
    }
    for (int64_t x = 1; x <= kPlaces; ++x) {
      const double p = std::pow(static_cast<double>(x), power - 1) / total;
      // five standard deviations of a binomial count
      EXPECT_NEAR(seen[static_cast<size_t>(x - 1)], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p)))
          << "power " << power << " place " << x;
    }
  }
}

TEST(Synthetic, MqarTakesEveryPlaceWhenItMust) {
  const Sequence got = example(task("mqar:length=16,pairs=4,vocab=64"), 0);
  for (size_t i = 0; i < 16; ++i) {
    EXPECT_EQ(got.targets[i] != kIgnoredTarget, i >= 8 && i % 2 == 0);
  }
}

TEST(Synthetic, Copy) {
  const Sequence got = example(task("copy:length=10,symbols=5"), 1);
  ASSERT_EQ(got.inputs.size(), 10U);
  EXPECT_EQ(got.inputs[5], 5);  // the separator
  for (size_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(got.inputs[i] >= 0 && got.inputs[i] < 5);
    EXPECT_EQ(got.targets[i], kIgnoredTarget);
    EXPECT_EQ(got.targets[5 + i], got.inputs[i]);
  }
  for (size_t i = 5; i + 1 < 10; ++i) {  // targets are the next inputs
    EXPECT_EQ(got.targets[i], got.inputs[i + 1]);
  }
}

TEST(Synthetic, Parity) {
  const Sequence got = example(task("parity:length=100", 2), 0);
  int64_t sum = 0, ones = 0;
  for (size_t i = 0; i < 100; ++i) {
    sum += got.inputs[i];
    ones += got.targets[i];
    EXPECT_EQ(got.targets[i], sum % 2);
  }
  EXPECT_TRUE(sum > 20 && sum < 80 && ones > 20 && ones < 80);
}

TEST(Synthetic, GroupsAreGroups) {
  for (const int64_t things : {3, 5}) {
    const auto elements = permutations(things);
    const auto order = static_cast<int64_t>(elements.size());
    EXPECT_EQ(order, things == 3 ? 6 : 120);
    for (int64_t a = 0; a < order; ++a) {
      EXPECT_EQ(compose(elements, a, 0), a);  // element 0 is the identity
      EXPECT_EQ(compose(elements, 0, a), a);
      std::set<int64_t> row;
      for (int64_t b = 0; b < order; ++b) {
        row.insert(compose(elements, a, b));
      }
      EXPECT_EQ(static_cast<int64_t>(row.size()), order);
    }
    const int64_t a = order - 1, b = 1, c = order / 2;
    EXPECT_EQ(compose(elements, compose(elements, a, b), c),
              compose(elements, a, compose(elements, b, c)));
  }
  // (1 0 2)(0 2 1): 0 -> 0 -> 1, 1 -> 2 -> 2, 2 -> 1 -> 0
  EXPECT_EQ(compose(permutations(3), 2, 1), 3);
}

TEST(Synthetic, StateTracking) {
  for (const char* name : {"s3", "s5"}) {
    const auto elements = permutations(name[1] - '0');
    const Sequence got = example(task(std::string(name) + ":length=40"), 5);
    int64_t state = got.inputs[0];
    EXPECT_EQ(got.targets[0], state);
    for (size_t i = 1; i < 40; ++i) {
      state = compose(elements, state, got.inputs[i]);
      EXPECT_EQ(got.targets[i], state);
    }
  }
}

TEST(Synthetic, ExamplesDependOnSeedPurposeAndNumber) {
  const auto parity = task("parity:length=64");
  const auto inputs = [&](int64_t seed, Purpose purpose, int64_t index) {
    return parity.example(seed, purpose, index).inputs;
  };
  const auto one = inputs(1, Purpose::kTrain, 2);
  EXPECT_EQ(one, inputs(1, Purpose::kTrain, 2));
  EXPECT_NE(one, inputs(2, Purpose::kTrain, 2));
  EXPECT_NE(one, inputs(1, Purpose::kHeldOut, 2));
  EXPECT_NE(one, inputs(1, Purpose::kTrain, 3));
}

TEST(Synthetic, RandomSample) {
  Random random(0, 1, 2);
  auto all = random.sample(20, 20);
  std::sort(all.begin(), all.end());
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(all[static_cast<size_t>(i)], i);
  }
  // Each of 10 numbers comes first equally often: five standard deviations.
  std::vector<int> first(10, 0);
  for (int64_t i = 0; i < 10000; ++i) {
    first[static_cast<size_t>(Random(3, 0, i).sample(3, 10).front())]++;
  }
  for (const int count : first) {
    EXPECT_NEAR(count, 1000, 150);
  }
}

TEST(Synthetic, NumberedTokenizer) {
  EXPECT_EQ(numbered_tokenizer(6)->hash(), ByteTokenizer().hash());
  const auto tokenizer = numbered_tokenizer(300);
  EXPECT_EQ(tokenizer->vocab_size(), 300);
  EXPECT_EQ(tokenizer->token_bytes(299), "<299>");
  // Text is bytes, also text that spells such a token.
  EXPECT_EQ(tokenizer->encode("a<299>"), ByteTokenizer().encode("a<299>"));
  const ScratchFolder folder;
  tokenizer->save(folder.path());
  EXPECT_EQ(load_tokenizer(folder.path())->hash(), tokenizer->hash());
}

TEST(Synthetic, BadSettings) {
  const auto error = [](const std::string& text, int64_t vocab = 256) {
    return error_of([&] { task(text, vocab); });
  };
  EXPECT_THAT(error("mqar:length=31,pairs=2"), HasSubstr("even"));
  EXPECT_THAT(error("mqar:length=31,pairs=9"), HasSubstr("4 tokens a pair"));
  EXPECT_THAT(error("mqar:length=64,pairs=8,vocab=16"), HasSubstr("vocabulary of 7"));
  EXPECT_THAT(error("copy:length=7"), HasSubstr("even"));
  EXPECT_THAT(error("copy:symbols=26,vocab=26"), HasSubstr("needs 27"));
  EXPECT_THAT(error("s5", 100), HasSubstr("needs 120"));
  EXPECT_THAT(error("parity:length=1"), HasSubstr("from 2 to"));
}

}  // namespace
}  // namespace mdn::evaluate
