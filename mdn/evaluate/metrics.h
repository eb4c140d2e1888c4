// Means, perplexities and their standard errors, as lm-evaluation-harness 0.4.x computes them.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace mdn::evaluate {

struct Metric {
  std::string name;
  double value = 0;
  std::optional<double> standard_error;  // absent where it is not defined, as for one sample
  bool higher_is_better = true;
};

double mean(std::span<const double> values);

/// Sample standard deviation (n - 1) / sqrt(n); absent for fewer than two values.
std::optional<double> standard_error(std::span<const double> values);

Metric mean_metric(const std::string& name, std::span<const double> values);

/// exp(-mean) of the log-likelihoods. The error is the sample standard deviation over `resamples`
/// (a multiple of 1000, or 0: no error) bootstrap draws with Python's generator, seeded 0, 1, ...
/// for each thousand.
Metric perplexity_metric(const std::string& name, std::span<const double> log_likelihoods,
                         int64_t resamples = 100'000);

/// What a log-likelihood is divided by: document i has log_likelihoods[i] over weights[i] units.
/// The standard errors are those of a ratio of sums over documents (linearised); absent for one
/// document. lm-evaluation-harness gives none for these.
struct Ratio {
  double nats = 0;  // -sum of log-likelihoods / sum of weights
  std::optional<double> standard_error;
};
Ratio nats_per_unit(std::span<const double> log_likelihoods, std::span<const double> weights);

/// exp of it, and it in bits.
Metric weighted_perplexity(const std::string& name, const Ratio& ratio);
Metric bits(const std::string& name, const Ratio& ratio);

/// First index of the largest value.
int64_t argmax(std::span<const double> values);

/// The Mersenne Twister as Python's random.Random(seed) runs it.
class PythonRandom {
 public:
  explicit PythonRandom(uint32_t seed);
  double random();  // in [0, 1), 53 bits

 private:
  uint32_t next();

  std::vector<uint32_t> state_;
  size_t at_;
};

}  // namespace mdn::evaluate
