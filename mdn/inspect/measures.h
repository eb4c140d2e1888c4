// What is measured of a head's gates: distributions, half-lives, eigenvalues.
#pragma once

#include <array>
#include <complex>
#include <cstdint>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace mdn::inspect {

/// A value head's scalars over the tokens of a text. Those that the layer's rule does not have are
/// empty: eta and mu without momentum, nu unless steps are mixed. pi, kappa and lambda always say
/// how the rule couples the states (docs/math/momentum_variants.md):
///   r = v - (pi S - lambda M)ᵀ k;   S <- alpha S - kappa M + beta eta k rᵀ;   M <- mu M - eta k rᵀ
/// with eta = 1 and mu = 0 where they are empty.
struct HeadGates {
  std::vector<double> alpha, beta, eta, mu, nu;
  std::vector<double> pi, kappa, lambda;

  bool momentum() const { return !mu.empty(); }
  int64_t tokens() const { return static_cast<int64_t>(alpha.size()); }
};

/// Equal bins over [low, high], or over its logarithm.
struct Histogram {
  double low = 0, high = 1;
  bool logarithmic = false;
  std::vector<int64_t> counts;
  int64_t below = 0, above = 0;  // values outside, infinity among them

  Histogram() = default;
  Histogram(double low_end, double high_end, int bins, bool log_scale)
      : low(low_end), high(high_end), logarithmic(log_scale), counts(static_cast<size_t>(bins)) {}
  void add(double value);
};

/// Probabilities whose quantiles a distribution has.
inline constexpr std::array<double, 7> kProbabilities = {0, 0.05, 0.25, 0.5, 0.75, 0.95, 1};

struct Distribution {
  int64_t count = 0;
  double mean = 0;                                           // infinite when a value is
  std::array<double, kProbabilities.size()> quantiles = {};  // the nearest value's
  Histogram histogram;

  double median() const { return quantiles[3]; }
};

/// Of the values, with a histogram of the given form (its counts are filled in).
Distribution distribution(std::vector<double> values, Histogram histogram);

/// Tokens until a state that is multiplied by `decay` each token is half of what it was:
/// ln 2 / -ln decay; 0 for a decay of 0, infinite from 1 on.
double half_life(double decay);

/// The eigenvalues of one token's map of (Sᵀk, Mᵀk) to itself for a key of length 1, v being 0:
///   [ alpha - beta eta pi    beta eta lambda - kappa ]
///   [ eta pi                 mu - eta lambda         ]
/// Without momentum there is one, alpha - beta eta pi, and the second is 0.
std::array<std::complex<double>, 2> eigenvalues(const HeadGates& gates, int64_t token);

/// An eigenvalue counts as outside the unit circle from here on: gates are float32.
inline constexpr double kOutside = 1 + 1e-6;

/// For writes by tokens spread over the first half of the text: tokens until a write's share in S,
/// when no later key meets it, is for good below half of its largest value, with the gates as they
/// come: S's share G <- alpha G + kappa W and M's W <- mu W, from G = beta, W = 1. Infinite where
/// the text ends before. Writes that never reach S are left out. At most `writes` of them.
std::vector<double> write_half_lives(const HeadGates& gates, int64_t writes = 256);

/// Counts of eigenvalues in square cells of the complex plane.
struct Plane {
  static constexpr double kLimit = 1.5;          // of |Re| and |Im|
  static constexpr int kCells = 60;              // on a side
  std::map<std::pair<int, int>, int64_t> cells;  // (column from the left, row from below)
  int64_t beyond = 0;                            // outside the picture
  int64_t total = 0;

  void add(std::complex<double> value);
  void add(const Plane& other);
};

}  // namespace mdn::inspect
