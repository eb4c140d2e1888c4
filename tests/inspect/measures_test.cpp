// Half-lives, eigenvalues and distributions against their definitions.
#include "mdn/inspect/measures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace mdn::inspect {
namespace {

using std::complex;

HeadGates constant(int64_t T, double alpha, double beta, double eta, double mu, double lambda = 0) {
  const auto all = [&](double value) { return std::vector(static_cast<size_t>(T), value); };
  return {.alpha = all(alpha),
          .beta = all(beta),
          .eta = all(eta),
          .mu = all(mu),
          .nu = {},
          .pi = all(alpha),
          .kappa = all(beta * mu),
          .lambda = all(lambda)};
}

TEST(HalfLife, IsTheTimeToHalf) {
  EXPECT_NEAR(half_life(0.5), 1, 1e-12);
  EXPECT_NEAR(half_life(std::pow(0.5, 0.01)), 100, 1e-9);
  EXPECT_EQ(half_life(0), 0);
  EXPECT_TRUE(std::isinf(half_life(1)));
  EXPECT_TRUE(std::isinf(half_life(1.5)));
}

// The map itself, applied to the two components along a key of length 1.
std::array<double, 4> map_of(const HeadGates& g) {
  const auto image = [&](double s, double m) {
    const double r = -(g.pi[0] * s - g.lambda[0] * m);
    const double write = g.eta[0] * r;
    return std::pair(g.alpha[0] * s - g.kappa[0] * m + g.beta[0] * write, g.mu[0] * m - write);
  };
  const auto [a, c] = image(1, 0);
  const auto [b, d] = image(0, 1);
  return {a, b, c, d};
}

TEST(Eigenvalues, SolveTheCharacteristicEquationOfTheRecurrence) {
  for (const double alpha : {0.0, 0.3, 0.99}) {
    for (const double mu : {0.0, 0.5, 1.0}) {
      for (const double eta : {0.0, 0.7, 2.0}) {
        for (const double lambda : {0.0, 0.4}) {
          const HeadGates g = constant(1, alpha, 0.6, eta, mu, lambda);
          const auto [a, b, c, d] = map_of(g);
          const auto roots = eigenvalues(g, 0);
          EXPECT_NEAR(std::abs(roots[0] + roots[1] - (a + d)), 0, 1e-14);
          EXPECT_NEAR(std::abs(roots[0] * roots[1] - (a * d - b * c)), 0, 1e-14);
        }
      }
    }
  }
}

TEST(Eigenvalues, WithoutMomentumTheOneOfTheDeltaRule) {
  HeadGates g = constant(1, 0.9, 0.8, 1, 0);
  g.eta.clear();
  g.mu.clear();
  EXPECT_NEAR(eigenvalues(g, 0)[0].real(), 0.9 * (1 - 0.8), 1e-15);
  EXPECT_EQ(eigenvalues(g, 0)[0].imag(), 0);
}

// docs/math/momentum_variants.md: heavy ball with pi = alpha never leaves the unit circle, Nesterov
// does at full gates, and does not below the caps (alpha <= cos², beta <= sin²).
TEST(Eigenvalues, StayInsideWhereTheDerivationSaysSo) {
  const auto radius = [](const HeadGates& g) {
    const auto roots = eigenvalues(g, 0);
    return std::max(std::abs(roots[0]), std::abs(roots[1]));
  };
  const std::vector<double> grid = {0, 0.1, 0.3, 0.5, 0.7, 0.9, 1};
  double nesterov = 0;
  for (const double alpha : grid) {
    for (const double beta : grid) {
      for (const double mu : grid) {
        for (const double eta : {0.0, 0.5, 1.0, 1.5, 2.0}) {
          EXPECT_LE(radius(constant(1, alpha, beta, eta, mu)), kOutside);
          nesterov = std::max(nesterov, radius(constant(1, alpha, beta, eta, mu, beta * mu)));
          for (const double sin2 : grid) {
            const double capped = beta * sin2;
            EXPECT_LE(radius(constant(1, alpha * (1 - sin2), capped, eta, mu, capped * mu)),
                      kOutside);
          }
        }
      }
    }
  }
  EXPECT_NEAR(nesterov, 1 + std::sqrt(2), 1e-12);
}

TEST(WriteHalfLives, OfConstantGates) {
  // Without momentum's second step: S alone, half after one token, at 0.5 still half of its peak.
  for (const double life : write_half_lives(constant(100, 0.4, 0.5, 1, 0))) {
    EXPECT_EQ(life, 1);
  }
  for (const double life : write_half_lives(constant(100, 0.5, 0.5, 1, 0))) {
    EXPECT_EQ(life, 2);
  }
  // alpha = mu: the share is beta (n + 1) alpha^n, counted out by hand for 0.9: its peak is at
  // n = 8 and 9, its half is last held at n = 24.
  double peak = 0;
  size_t last = 0;
  for (size_t n = 0; n < 200; ++n) {
    peak = std::max(peak, double(n + 1) * std::pow(0.9, n));
  }
  for (size_t n = 0; n < 200; ++n) {
    last = double(n + 1) * std::pow(0.9, n) >= peak / 2 ? n : last;
  }
  EXPECT_EQ(last, 24u);
  for (const double life : write_half_lives(constant(200, 0.9, 0.5, 1, 0.9))) {
    EXPECT_EQ(life, 25);
  }
}

TEST(WriteHalfLives, EndlessMemoryIsInfiniteAndUnwrittenTokensAreLeftOut) {
  for (const double life : write_half_lives(constant(50, 1, 0.5, 1, 0))) {
    EXPECT_TRUE(std::isinf(life));
  }
  EXPECT_TRUE(write_half_lives(constant(50, 0.9, 0, 1, 0)).empty());
  EXPECT_EQ(write_half_lives(constant(1, 0.9, 0.5, 1, 0.5)).size(), 1u);
}

TEST(Distribution, QuantilesAndBins) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) {
    values.push_back(i / 100.0);
  }
  const Distribution d = distribution(values, {0, 1, 10, false});
  EXPECT_THAT(d.quantiles, testing::ElementsAre(0, 0.05, 0.25, 0.5, 0.75, 0.95, 1));
  EXPECT_NEAR(d.mean, 0.5, 1e-12);
  EXPECT_EQ(d.histogram.counts.front(), 10);
  EXPECT_EQ(d.histogram.counts.back(), 11);  // 1 itself belongs to the last bin

  const Distribution lives = distribution({0, 0.5, 5, 50, INFINITY}, {0.1, 1000, 4, true});
  EXPECT_THAT(lives.histogram.counts, testing::ElementsAre(1, 1, 1, 0));
  EXPECT_EQ(lives.histogram.below, 1);
  EXPECT_EQ(lives.histogram.above, 1);
  EXPECT_EQ(lives.median(), 5);
  EXPECT_TRUE(std::isinf(lives.mean));
}

TEST(Plane, CellsAndWhatIsBeyond) {
  Plane plane;
  plane.add({-1.49, -1.49});
  plane.add({0.01, 0.01});
  plane.add({0.01, 0.02});
  plane.add({2, 0});
  EXPECT_EQ(plane.total, 4);
  EXPECT_EQ(plane.beyond, 1);
  EXPECT_EQ((plane.cells[{0, 0}]), 1);
  EXPECT_EQ((plane.cells[{30, 30}]), 2);
}

}  // namespace
}  // namespace mdn::inspect
