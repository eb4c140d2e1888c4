#include "mdn/evaluate/metrics.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"

namespace mdn::evaluate {
namespace {

constexpr size_t kWords = 624;
constexpr size_t kShift = 397;
constexpr int64_t kResamplesASeed = 1000;

std::optional<double> sample_deviation(std::span<const double> values) {
  if (values.size() < 2) {
    return std::nullopt;
  }
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) {
    squares += (value - center) * (value - center);
  }
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

}  // namespace

double mean(std::span<const double> values) {
  MDN_CHECK(!values.empty(), "the mean of no values");
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::optional<double> standard_error(std::span<const double> values) {
  const auto deviation = sample_deviation(values);
  return deviation ? std::optional(*deviation / std::sqrt(static_cast<double>(values.size())))
                   : std::nullopt;
}

Metric mean_metric(const std::string& name, std::span<const double> values) {
  return {.name = name, .value = mean(values), .standard_error = standard_error(values)};
}

Metric perplexity_metric(const std::string& name, std::span<const double> log_likelihoods,
                         int64_t resamples) {
  MDN_CHECK(resamples >= 0 && resamples % kResamplesASeed == 0,
            "{} bootstrap resamples; a multiple of {} is needed", resamples, kResamplesASeed);
  Metric metric{.name = name,
                .value = std::exp(-mean(log_likelihoods)),
                .standard_error = std::nullopt,
                .higher_is_better = false};
  if (log_likelihoods.size() < 2) {
    return metric;
  }
  const auto n = static_cast<double>(log_likelihoods.size());
  std::vector<double> drawn(static_cast<size_t>(resamples));
  parallel_for(resamples / kResamplesASeed, [&](int64_t seed, int) {
    PythonRandom random(static_cast<uint32_t>(seed));
    for (int64_t i = 0; i < kResamplesASeed; ++i) {
      double sum = 0;
      for (size_t k = 0; k < log_likelihoods.size(); ++k) {
        sum += log_likelihoods[static_cast<size_t>(random.random() * n)];
      }
      drawn[static_cast<size_t>(seed * kResamplesASeed + i)] = std::exp(-sum / n);
    }
  });
  metric.standard_error = sample_deviation(drawn);
  return metric;
}

// r = sum x / sum w; se(r)^2 = n / (n - 1) sum (x - r w)^2 / (sum w)^2
Ratio nats_per_unit(std::span<const double> log_likelihoods, std::span<const double> weights) {
  const double units = std::accumulate(weights.begin(), weights.end(), 0.0);
  MDN_CHECK(units > 0 && weights.size() == log_likelihoods.size(), "a mean over nothing");
  Ratio ratio;
  ratio.nats = -std::accumulate(log_likelihoods.begin(), log_likelihoods.end(), 0.0) / units;
  if (weights.size() > 1) {
    double squares = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const double residual = -log_likelihoods[i] - ratio.nats * weights[i];
      squares += residual * residual;
    }
    const auto n = static_cast<double>(weights.size());
    ratio.standard_error = std::sqrt(n / (n - 1) * squares) / units;
  }
  return ratio;
}

Metric weighted_perplexity(const std::string& name, const Ratio& ratio) {
  Metric metric{.name = name,
                .value = std::exp(ratio.nats),
                .standard_error = std::nullopt,
                .higher_is_better = false};
  if (ratio.standard_error) {
    metric.standard_error = metric.value * *ratio.standard_error;
  }
  return metric;
}

Metric bits(const std::string& name, const Ratio& ratio) {
  Metric metric{.name = name,
                .value = ratio.nats / std::numbers::ln2,
                .standard_error = std::nullopt,
                .higher_is_better = false};
  if (ratio.standard_error) {
    metric.standard_error = *ratio.standard_error / std::numbers::ln2;
  }
  return metric;
}

int64_t argmax(std::span<const double> values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

// Matsumoto and Nishimura's generator; the seed goes in as an array of one word, as Python's does.
PythonRandom::PythonRandom(uint32_t seed) : state_(kWords), at_(kWords) {
  const auto mix = [](uint32_t x, uint32_t factor) { return (x ^ (x >> 30)) * factor; };
  state_[0] = 19650218;
  for (size_t i = 1; i < kWords; ++i) {
    state_[i] = mix(state_[i - 1], 1812433253) + static_cast<uint32_t>(i);
  }
  size_t i = 1;
  const auto advance = [&] {
    if (++i == kWords) {
      state_[0] = state_[kWords - 1];
      i = 1;
    }
  };
  for (size_t k = 0; k < kWords; ++k, advance()) {
    state_[i] = (state_[i] ^ mix(state_[i - 1], 1664525)) + seed;
  }
  for (size_t k = 1; k < kWords; ++k, advance()) {
    state_[i] = (state_[i] ^ mix(state_[i - 1], 1566083941)) - static_cast<uint32_t>(i);
  }
  state_[0] = 0x80000000;
}

uint32_t PythonRandom::next() {
  if (at_ == kWords) {
    for (size_t i = 0; i < kWords; ++i) {
      const uint32_t y = (state_[i] & 0x80000000) | (state_[(i + 1) % kWords] & 0x7fffffff);
      state_[i] =
          state_[(i + kShift) % kWords] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908b0df : uint32_t{0});
    }
    at_ = 0;
  }
  uint32_t y = state_[at_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680;
  y ^= (y << 15) & 0xefc60000;
  return y ^ (y >> 18);
}

double PythonRandom::random() {
  const uint32_t high = next() >> 5, low = next() >> 6;
  return (high * 67108864.0 + low) / 9007199254740992.0;
}

}  // namespace mdn::evaluate
