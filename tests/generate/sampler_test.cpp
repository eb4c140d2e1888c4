// The sampler: each rule against hand-made distributions, then the draws' frequencies.
#include "mdn/generate/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "mdn/core/error.h"

namespace mdn::generate {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Logits whose softmax at temperature 1 is `probabilities`.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (double p : probabilities) {
    logits.push_back(static_cast<float>(std::log(p)));
  }
  return logits;
}

std::vector<Candidate> distribution(const SamplerOptions& options, std::span<const float> logits,
                                    const SeenTokens& seen = {}) {
  Sampler sampler(options);
  const auto out = sampler.distribution(logits, seen);
  return {out.begin(), out.end()};
}

std::vector<int> ids(const std::vector<Candidate>& candidates) {
  std::vector<int> out;
  for (const Candidate& c : candidates) {
    out.push_back(c.id);
  }
  return out;
}

// float32 logits of magnitude up to 5 give probabilities with relative errors of 5 * 2^-24.
constexpr double kTolerance = 1e-6;

void expect_probabilities(const std::vector<Candidate>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_NEAR(got[i].probability, want[i], kTolerance * want[i]) << i;
  }
}

TEST(Sampler, PlainSoftmax) {
  const auto got = distribution({}, logits_of({0.1, 0.2, 0.7}));
  EXPECT_THAT(ids(got), ElementsAre(0, 1, 2));
  expect_probabilities(got, {0.1, 0.2, 0.7});
}

TEST(Sampler, TemperatureDividesLogits) {
  // p^(1/t) renormalised: t = 0.5 squares
  expect_probabilities(distribution({.temperature = 0.5}, logits_of({0.2, 0.8})),
                       {0.04 / 0.68, 0.64 / 0.68});
  expect_probabilities(distribution({.temperature = 2}, logits_of({0.2, 0.8})), {1.0 / 3, 2.0 / 3});
}

TEST(Sampler, TinyAndHugeTemperaturesStayFinite) {
  EXPECT_THAT(ids(distribution({.temperature = 1e-300}, logits_of({0.2, 0.5, 0.3}))),
              ElementsAre(1));
  expect_probabilities(distribution({.temperature = 1e300}, logits_of({0.2, 0.8})), {0.5, 0.5});
}

TEST(Sampler, ZeroTemperatureIsGreedyAndPrefersTheLowestId) {
  const std::vector<float> logits = {-1, 3, 0, 3};
  EXPECT_THAT(ids(distribution({.temperature = 0}, logits)), ElementsAre(1));
  Sampler sampler({.temperature = 0});
  RandomStream random;
  EXPECT_EQ(sampler.next(logits, {}, random), 1);
  EXPECT_EQ(random.drawn, 0u);  // greedy uses no randomness
}

TEST(Sampler, TopKKeepsTiesOfTheKth) {
  const std::vector<float> logits = {0, 2, 1, 2, 1};
  EXPECT_THAT(ids(distribution({.top_k = 1}, logits)), ElementsAre(1, 3));
  EXPECT_THAT(ids(distribution({.top_k = 2}, logits)), ElementsAre(1, 3));
  EXPECT_THAT(ids(distribution({.top_k = 3}, logits)), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(ids(distribution({.top_k = 5}, logits)), ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(ids(distribution({.top_k = 500}, logits)), ElementsAre(0, 1, 2, 3, 4));
}

TEST(Sampler, TopPKeepsTokensWhosePredecessorsSumBelowP) {
  const auto logits = logits_of({0.1, 0.5, 0.15, 0.25});
  EXPECT_THAT(ids(distribution({.top_p = 0.0001}, logits)), ElementsAre(1));
  EXPECT_THAT(ids(distribution({.top_p = 0.49}, logits)), ElementsAre(1));
  EXPECT_THAT(ids(distribution({.top_p = 0.51}, logits)), ElementsAre(1, 3));
  EXPECT_THAT(ids(distribution({.top_p = 0.74}, logits)), ElementsAre(1, 3));
  EXPECT_THAT(ids(distribution({.top_p = 0.76}, logits)), ElementsAre(1, 2, 3));
  EXPECT_THAT(ids(distribution({.top_p = 0.91}, logits)), ElementsAre(0, 1, 2, 3));
  const auto kept = distribution({.top_p = 0.6}, logits);
  expect_probabilities(kept, {2.0 / 3, 1.0 / 3});
}

TEST(Sampler, TopPRanksEqualsByTheLowestId) {
  EXPECT_THAT(ids(distribution({.top_p = 0.6}, logits_of({0.25, 0.25, 0.25, 0.25}))),
              ElementsAre(0, 1, 2));
}

TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  const auto logits = logits_of({0.1, 0.5, 0.15, 0.25});
  EXPECT_THAT(ids(distribution({.min_p = 0.19}, logits)), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(ids(distribution({.min_p = 0.21}, logits)), ElementsAre(1, 2, 3));
  EXPECT_THAT(ids(distribution({.min_p = 0.51}, logits)), ElementsAre(1));
  EXPECT_THAT(ids(distribution({.min_p = 1.0}, logits)), ElementsAre(1));
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegative) {
  SeenTokens seen;
  seen.add(0);
  seen.add(1);
  const std::vector<float> logits = {2, -2, 2, -2};
  const auto got = distribution({.repetition_penalty = 2}, logits, seen);
  const double a = std::exp(1.0), b = std::exp(-4.0), c = std::exp(2.0), d = std::exp(-2.0);
  const double sum = a + b + c + d;
  expect_probabilities(got, {a / sum, b / sum, c / sum, d / sum});
  // greedy sees it too
  EXPECT_THAT(ids(distribution({.temperature = 0, .repetition_penalty = 2}, logits, seen)),
              ElementsAre(2));
}

TEST(Sampler, TopPIsOfWhatTopKLeft) {
  // top-k 2 leaves {0.5, 0.25} = {2/3, 1/3}; of these 0.6 is covered by the first alone, while of
  // the whole it would take both.
  const auto logits = logits_of({0.1, 0.5, 0.15, 0.25});
  EXPECT_THAT(ids(distribution({.top_k = 2, .top_p = 0.6}, logits)), ElementsAre(1));
  EXPECT_THAT(ids(distribution({.top_p = 0.6}, logits)), ElementsAre(1, 3));
}

TEST(Sampler, PenaltyComesBeforeTemperature) {
  SeenTokens seen;
  seen.add(0);
  const std::vector<float> logits = {1, 0};
  // (1 / 2) / 0.5 = 1
  expect_probabilities(distribution({.temperature = 0.5, .repetition_penalty = 2}, logits, seen),
                       {std::exp(1.0) / (1 + std::exp(1.0)), 1 / (1 + std::exp(1.0))});
}

TEST(Sampler, MinusInfinityIsNeverDrawn) {
  SeenTokens seen;
  seen.add(0);
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity, 0};
  const auto got = distribution({.top_k = 3, .repetition_penalty = 2}, logits, seen);
  EXPECT_THAT(ids(got), ElementsAre(1, 3));
}

TEST(Sampler, BadLogitsAreErrors) {
  const auto message = [](std::vector<float> logits) -> std::string {
    try {
      distribution({}, logits);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({0, NAN, 1}), HasSubstr("token 1"));
  EXPECT_THAT(message({0, kInfinity}), HasSubstr("token 1"));
  EXPECT_THAT(message({-kInfinity, -kInfinity}), HasSubstr("nothing can be sampled"));
  EXPECT_THAT(message({}), HasSubstr("no logits"));
}

TEST(Sampler, BadOptionsAreErrorsThatNameThem) {
  const auto message = [](SamplerOptions options) -> std::string {
    try {
      Sampler sampler(options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({.temperature = -0.1}), HasSubstr("temperature is -0.1"));
  EXPECT_THAT(message({.temperature = NAN}), HasSubstr("temperature is nan"));
  EXPECT_THAT(message({.temperature = kInfinity}), HasSubstr("temperature is inf"));
  EXPECT_THAT(message({.top_k = -1}), HasSubstr("top-k is -1"));
  EXPECT_THAT(message({.top_p = 0}), HasSubstr("top-p is 0"));
  EXPECT_THAT(message({.top_p = 1.5}), HasSubstr("top-p is 1.5"));
  EXPECT_THAT(message({.top_p = NAN}), HasSubstr("top-p is nan"));
  EXPECT_THAT(message({.min_p = -0.5}), HasSubstr("min-p is -0.5"));
  EXPECT_THAT(message({.min_p = 1.01}), HasSubstr("min-p is 1.01"));
  EXPECT_THAT(message({.repetition_penalty = 0}), HasSubstr("repetition penalty is 0"));
  EXPECT_EQ(message({}), "");
}

// The same rules written the slow way, by sorting.
std::vector<Candidate> slow_distribution(const SamplerOptions& o,
                                         const std::vector<float>& logits) {
  std::vector<std::pair<double, int>> ranked;  // (-logit, id): likeliest first, then lowest id
  for (size_t i = 0; i < logits.size(); ++i) {
    ranked.emplace_back(-static_cast<double>(logits[i]) / o.temperature, static_cast<int>(i));
  }
  std::sort(ranked.begin(), ranked.end());
  if (o.top_k > 0 && static_cast<size_t>(o.top_k) < ranked.size()) {
    const double kth = ranked[static_cast<size_t>(o.top_k - 1)].first;
    std::erase_if(ranked, [&](const auto& r) { return r.first > kth; });
  }
  double sum = 0;
  for (const auto& r : ranked) {
    sum += std::exp(ranked[0].first - r.first);
  }
  std::vector<Candidate> kept;
  double before = 0;
  for (const auto& r : ranked) {
    const double p = std::exp(ranked[0].first - r.first) / sum;
    if (kept.empty() || before < o.top_p) {
      kept.push_back({r.second, p});
    }
    before += p;
  }
  const double least = o.min_p * kept[0].probability;
  std::erase_if(kept, [&](const Candidate& c) { return c.probability < least; });
  double left = 0;
  for (const Candidate& c : kept) {
    left += c.probability;
  }
  for (Candidate& c : kept) {
    c.probability /= left;
  }
  std::sort(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.id < b.id; });
  return kept;
}

TEST(Sampler, EqualsSlowFormOnManyRandomCases) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 2);
  std::uniform_real_distribution<double> uniform(0.02, 0.98);
  for (int repeat = 0; repeat < 300; ++repeat) {
    std::vector<float> logits(1 + random() % 200);
    for (float& x : logits) {
      x = normal(random);
      if (repeat % 3 == 0) {
        x = std::round(x);  // ties
      }
    }
    SamplerOptions options{.temperature = 0.3 + uniform(random)};
    options.top_k = repeat % 2 ? 0 : static_cast<int64_t>(1 + random() % 40);
    options.top_p = repeat % 5 ? uniform(random) : 1.0;
    options.min_p = repeat % 7 ? 0.0 : uniform(random);
    const auto got = distribution(options, logits);
    const auto want = slow_distribution(options, logits);
    ASSERT_EQ(ids(got), ids(want)) << repeat;
    for (size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i].probability, want[i].probability, 1e-12) << repeat;
    }
  }
}

// Pearson's chi-squared of the draws' counts. With d degrees of freedom a correct sampler exceeds
// d + 2 sqrt(d x) + 2 x with probability at most exp(-x) (Laurent and Massart 2000): x = 14 makes
// a false alarm 8e-7. The seeds are fixed, so a pass stays a pass.
TEST(Sampler, DrawsFollowTheDistribution) {
  constexpr double kX = 14;
  constexpr int kDraws = 200000;
  std::vector<float> logits(40);
  for (size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(std::sin(static_cast<double>(i * i)) * 1.5);
  }
  const std::vector<SamplerOptions> cases = {
      {}, {.temperature = 0.7, .top_k = 10}, {.top_p = 0.8}, {.temperature = 1.5, .min_p = 0.2}};
  for (uint64_t stream = 0; stream < cases.size(); ++stream) {
    Sampler sampler(cases[stream]);
    RandomStream random{.seed = 11, .stream = stream};
    std::map<int64_t, int> counts;
    for (int i = 0; i < kDraws; ++i) {
      ++counts[sampler.next(logits, {}, random)];
    }
    EXPECT_EQ(random.drawn, static_cast<uint64_t>(kDraws));
    const auto want = sampler.distribution(logits, {});
    double chi2 = 0;
    int total = 0;
    for (const Candidate& c : want) {
      const double expected = kDraws * c.probability;
      chi2 += std::pow(counts[c.id] - expected, 2) / expected;
      total += counts[c.id];
    }
    EXPECT_EQ(total, kDraws) << "a token outside the distribution was drawn";
    const double d = static_cast<double>(want.size()) - 1;
    EXPECT_LT(chi2, d + 2 * std::sqrt(d * kX) + 2 * kX) << "case " << stream;
  }
}

TEST(RandomStream, IsUniformAndStreamsAreUncorrelated) {
  // 256 cells; the same bound as above.
  constexpr double kX = 14;
  constexpr int kNumbers = 256 * 400;
  for (uint64_t stream : {0u, 1u, 2u}) {
    RandomStream a{.seed = 0, .stream = stream}, b{.seed = 0, .stream = stream + 1};
    std::vector<int> counts(256);
    double product = 0;
    for (int i = 0; i < kNumbers; ++i) {
      const double x = a.next(), y = b.next();
      ASSERT_TRUE(x >= 0 && x < 1);
      ++counts[static_cast<size_t>(x * 256)];
      product += (x - 0.5) * (y - 0.5);
    }
    double chi2 = 0;
    for (int c : counts) {
      chi2 += std::pow(c - 400.0, 2) / 400;
    }
    EXPECT_LT(chi2, 255 + 2 * std::sqrt(255 * kX) + 2 * kX);
    // The sum of n products of independent uniforms has standard deviation sqrt(n) / 12; six of
    // them happen by chance with probability 2e-9.
    EXPECT_LT(std::abs(product), 6 * std::sqrt(kNumbers) / 12);
  }
}

TEST(RandomStream, DependsOnSeedStreamAndPlaceAlone) {
  RandomStream a{.seed = 5, .stream = 2};
  std::vector<double> first;
  for (int i = 0; i < 10; ++i) {
    first.push_back(a.next());
  }
  RandomStream resumed{.seed = 5, .stream = 2, .drawn = 7};
  EXPECT_EQ(resumed.next(), first[7]);
  RandomStream other_seed{.seed = 6, .stream = 2}, other_stream{.seed = 5, .stream = 3};
  EXPECT_NE(other_seed.next(), first[0]);
  EXPECT_NE(other_stream.next(), first[0]);
}

TEST(RandomStream, SeedsAndStreamsDoNotCollide) {
  std::vector<double> firsts;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    for (uint64_t stream = 0; stream < 100; ++stream) {
      RandomStream random{.seed = seed, .stream = stream};
      firsts.push_back(random.next());
    }
  }
  std::sort(firsts.begin(), firsts.end());
  EXPECT_EQ(std::adjacent_find(firsts.begin(), firsts.end()), firsts.end());
}

TEST(SeenTokens, KeepsEachIdOnceInOrder) {
  SeenTokens seen;
  for (int64_t id : {7, 3, 7, 50256, 3}) {
    seen.add(id);
  }
  EXPECT_THAT(seen.ids(), ElementsAre(7, 3, 50256));
  EXPECT_TRUE(seen.has(3));
  EXPECT_FALSE(seen.has(4));
  EXPECT_FALSE(seen.has(-1));
  EXPECT_FALSE(seen.has(1 << 20));
  EXPECT_THROW(seen.add(-1), Error);
}

}  // namespace
}  // namespace mdn::generate
