#include "mdn/evaluate/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "tests/evaluate/fixtures.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

// Sums of a few numbers of the same size in the same order: rounding of the last bit.
constexpr double kRelative = 1e-14;

// random.Random(seed).random() of CPython, printed by it.
TEST(PythonRandom, DrawsAsPythonDoes) {
  PythonRandom zero(0);
  EXPECT_EQ(zero.random(), 0.8444218515250481);
  EXPECT_EQ(zero.random(), 0.7579544029403025);
  PythonRandom other(99);
  EXPECT_EQ(other.random(), 0.40397807494366633);
  double last = 0;
  for (int i = 0; i < 999; ++i) {  // past the first 624 words
    last = other.random();
  }
  EXPECT_EQ(last, 0.15455054961261028);
}

TEST(Metrics, MeanAndItsError) {
  const std::vector<double> values = {1, 0, 0, 1, 1};
  const Metric metric = mean_metric("acc", values);
  EXPECT_DOUBLE_EQ(metric.value, 0.6);
  EXPECT_DOUBLE_EQ(*metric.standard_error, std::sqrt(5 * 0.6 * 0.4 / 4 / 5));
  EXPECT_FALSE(mean_metric("acc", std::vector<double>{1}).standard_error.has_value());
  EXPECT_NE(error_of([] { mean({}); }).find("no values"), std::string::npos);
}

TEST(Metrics, RollingPerplexitiesOfTheHarness) {
  const Json& rolling = expected().at("rolling");
  const auto lls = rolling.at("log_likelihoods").get<std::vector<double>>();
  const auto words = rolling.at("words").get<std::vector<double>>();
  const auto bytes = rolling.at("bytes").get<std::vector<double>>();
  const auto near = [](double got, const Json& want) {
    EXPECT_NEAR(got, want.get<double>(), kRelative * std::abs(want.get<double>()));
  };
  near(weighted_perplexity("w", nats_per_unit(lls, words)).value, rolling.at("word_perplexity"));
  near(weighted_perplexity("b", nats_per_unit(lls, bytes)).value, rolling.at("byte_perplexity"));
  near(bits("b", nats_per_unit(lls, bytes)).value, rolling.at("bits_per_byte"));
}

// With equal weights the ratio is a mean, whose error is known.
TEST(Metrics, ErrorOfARatio) {
  const std::vector<double> lls = {-1, -4, -2.5, -7}, weights(4, 2.0);
  const Ratio ratio = nats_per_unit(lls, weights);
  std::vector<double> means;
  for (const double ll : lls) {
    means.push_back(-ll / 2);
  }
  EXPECT_DOUBLE_EQ(ratio.nats, mean(means));
  EXPECT_DOUBLE_EQ(*ratio.standard_error, *standard_error(means));
  const Metric perplexity = weighted_perplexity("p", ratio);
  EXPECT_DOUBLE_EQ(*perplexity.standard_error, std::exp(ratio.nats) * *ratio.standard_error);
  EXPECT_DOUBLE_EQ(*bits("b", ratio).standard_error, *ratio.standard_error / std::numbers::ln2);
  EXPECT_FALSE(
      nats_per_unit(std::vector<double>{-1}, std::vector<double>{1}).standard_error.has_value());
}

TEST(Metrics, BootstrapCanBeLeftOut) {
  const std::vector<double> lls = {-1, -2};
  EXPECT_DOUBLE_EQ(perplexity_metric("p", lls, 0).value, std::exp(1.5));
  EXPECT_FALSE(perplexity_metric("p", lls, 0).standard_error.has_value());
  EXPECT_NE(error_of([&] { perplexity_metric("p", lls, 10); }).find("1000"), std::string::npos);
}

TEST(Metrics, ArgmaxTakesTheFirst) {
  EXPECT_EQ(argmax(std::vector<double>{-2, -1, -1}), 1);
}

}  // namespace
}  // namespace mdn::evaluate
