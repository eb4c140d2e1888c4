#include "mdn/inspect/measures.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

namespace mdn::inspect {

void Histogram::add(double value) {
  const auto position = [&](double x) { return logarithmic ? std::log(x) : x; };
  if (value < low) {
    ++below;
  } else if (value > high) {
    ++above;
  } else {
    const double share = (position(value) - position(low)) / (position(high) - position(low)) *
                         double(counts.size());
    ++counts[std::min(static_cast<size_t>(std::max(share, 0.0)), counts.size() - 1)];
  }
}

Distribution distribution(std::vector<double> values, Histogram histogram) {
  Distribution d;
  d.count = static_cast<int64_t>(values.size());
  for (const double value : values) {
    histogram.add(value);
  }
  d.histogram = std::move(histogram);
  if (values.empty()) {
    return d;
  }
  std::sort(values.begin(), values.end());
  d.mean = std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
  for (size_t i = 0; i < kProbabilities.size(); ++i) {
    d.quantiles[i] =
        values[static_cast<size_t>(std::lround(kProbabilities[i] * double(values.size() - 1)))];
  }
  return d;
}

double half_life(double decay) {
  if (decay >= 1) {
    return std::numeric_limits<double>::infinity();
  }
  return decay > 0 ? std::numbers::ln2 / -std::log(decay) : 0;
}

std::array<std::complex<double>, 2> eigenvalues(const HeadGates& g, int64_t token) {
  const auto t = static_cast<size_t>(token);
  const double eta = g.eta.empty() ? 1 : g.eta[t];
  const double a = g.alpha[t] - g.beta[t] * eta * g.pi[t];
  if (!g.momentum()) {
    return {a, 0};
  }
  const double b = g.beta[t] * eta * g.lambda[t] - g.kappa[t];
  const double c = eta * g.pi[t], d = g.mu[t] - eta * g.lambda[t];
  // (a + d)/2 ± root of ((a - d)/2)² + bc
  const double middle = (a + d) / 2, half = (a - d) / 2, square = half * half + b * c;
  if (square < 0) {
    const double height = std::sqrt(-square);
    return {std::complex(middle, height), std::complex(middle, -height)};
  }
  return {middle + std::sqrt(square), middle - std::sqrt(square)};
}

std::vector<double> write_half_lives(const HeadGates& g, int64_t writes) {
  const int64_t T = g.tokens(), first_half = (T + 1) / 2;
  const int64_t count = std::min(writes, first_half);
  std::vector<double> lives, share;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t j = i * first_half / count;
    double in_S = g.beta[static_cast<size_t>(j)], in_M = 1, peak = in_S;
    share.assign(1, in_S);
    for (auto t = static_cast<size_t>(j + 1); t < static_cast<size_t>(T); ++t) {
      in_S = g.alpha[t] * in_S + g.kappa[t] * in_M;
      in_M *= g.momentum() ? g.mu[t] : 0;
      peak = std::max(peak, in_S);
      share.push_back(in_S);
    }
    if (peak <= 0) {
      continue;
    }
    auto last = share.size();  // of the shares that are still half of the peak
    while (share[last - 1] < peak / 2) {
      --last;
    }
    lives.push_back(last == share.size() ? std::numeric_limits<double>::infinity() : double(last));
  }
  return lives;
}

void Plane::add(std::complex<double> value) {
  ++total;
  const auto cell = [](double x) {
    return static_cast<int>(std::floor((x + kLimit) / (2 * kLimit) * kCells));
  };
  if (!(std::abs(value.real()) < kLimit && std::abs(value.imag()) < kLimit)) {
    ++beyond;
    return;
  }
  ++cells[{cell(value.real()), cell(value.imag())}];
}

void Plane::add(const Plane& other) {
  for (const auto& [cell, count] : other.cells) {
    cells[cell] += count;
  }
  beyond += other.beyond;
  total += other.total;
}

}  // namespace mdn::inspect
