#include "mdn/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "mdn/core/error.h"

namespace mdn::generate {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio, odd

// The finaliser of SplitMix64: a bijection whose output passes the usual test batteries when fed
// consecutive multiples of kGolden.
uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Likelier first; among equals the lower id.
bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.probability != b.probability ? a.probability > b.probability : a.id < b.id;
}

double sum_of(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& c : candidates) {
    sum += c.probability;
  }
  return sum;
}

}  // namespace

void check(const SamplerOptions& o) {
  MDN_CHECK(std::isfinite(o.temperature) && o.temperature >= 0,
            "temperature is {}; it must be 0 (greedy) or a positive number", o.temperature);
  MDN_CHECK(o.top_k >= 0, "top-k is {}; it must be 0 (off) or a positive number", o.top_k);
  MDN_CHECK(o.top_p > 0 && o.top_p <= 1, "top-p is {}; it must be above 0 and at most 1 (off)",
            o.top_p);
  MDN_CHECK(o.min_p >= 0 && o.min_p <= 1, "min-p is {}; it must be from 0 (off) to 1", o.min_p);
  MDN_CHECK(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0,
            "repetition penalty is {}; it must be a positive number (1 is off)",
            o.repetition_penalty);
}

void check_largest_logit(float logit) {
  MDN_CHECK(!std::isnan(logit) && logit != std::numeric_limits<float>::infinity(),
            "a logit of the model is {}: its weights or states are not finite", logit);
  MDN_CHECK(logit != -std::numeric_limits<float>::infinity(),
            "all logits of the model are -infinity: nothing can be sampled");
}

void SeenTokens::add(int64_t id) {
  MDN_CHECK(id >= 0 && id <= std::numeric_limits<int32_t>::max(), "token id {} is out of range",
            id);
  const auto at = static_cast<size_t>(id);
  if (at >= seen_.size()) {
    seen_.resize(at + 1);
  }
  if (!seen_[at]) {
    seen_[at] = true;
    ids_.push_back(static_cast<int32_t>(id));
  }
}

bool SeenTokens::has(int64_t id) const {
  return id >= 0 && static_cast<size_t>(id) < seen_.size() && seen_[static_cast<size_t>(id)];
}

double RandomStream::next() {
  const uint64_t key = mix(mix(seed + kGolden) ^ mix(stream * kGolden + 1));
  ++drawn;
  return static_cast<double>(mix(key + drawn * kGolden) >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplerOptions& options) : options_(options) {
  check(options_);
}

// Below the k-th largest logit goes; probabilities are monotone in the logits, ties included.
void Sampler::keep_top_k() {
  const auto k = static_cast<size_t>(options_.top_k);
  if (options_.top_k == 0 || k >= scaled_.size()) {
    return;
  }
  std::vector<double> order = scaled_;
  const auto kth = order.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(order.begin(), kth, order.end(), std::greater<>());
  const double least = *kth;
  std::erase_if(kept_,
                [&](const Candidate& c) { return scaled_[static_cast<size_t>(c.id)] < least; });
}

void Sampler::keep_top_p() {
  if (options_.top_p >= 1 || kept_.empty()) {
    return;
  }
  const double enough = options_.top_p * sum_of(kept_);
  // A heap gives up the likeliest one by one, so that few are sorted when few stay.
  const auto later = [](const Candidate& a, const Candidate& b) { return ranks_before(b, a); };
  std::make_heap(kept_.begin(), kept_.end(), later);
  auto end = kept_.end();
  double before = 0;
  do {
    std::pop_heap(kept_.begin(), end, later);
    --end;
    before += end->probability;
  } while (end != kept_.begin() && before < enough);
  kept_.erase(kept_.begin(), end);
  std::sort(kept_.begin(), kept_.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void Sampler::keep_min_p() {
  if (options_.min_p <= 0) {
    return;
  }
  double largest = 0;
  for (const Candidate& c : kept_) {
    largest = std::max(largest, c.probability);
  }
  const double least = options_.min_p * largest;
  std::erase_if(kept_, [&](const Candidate& c) { return c.probability < least; });
}

std::span<const Candidate> Sampler::distribution(std::span<const float> logits,
                                                 const SeenTokens& seen) {
  MDN_CHECK(!logits.empty(), "sampling: there are no logits");
  scaled_.assign(logits.begin(), logits.end());
  for (size_t i = 0; i < logits.size(); ++i) {
    MDN_CHECK(!std::isnan(logits[i]) && logits[i] != std::numeric_limits<float>::infinity(),
              "the model's logit of token {} is {}: its weights or states are not finite", i,
              logits[i]);
  }
  if (options_.repetition_penalty != 1) {
    for (int32_t id : seen.ids()) {
      if (static_cast<size_t>(id) < scaled_.size()) {
        double& x = scaled_[static_cast<size_t>(id)];
        x = x > 0 ? x / options_.repetition_penalty : x * options_.repetition_penalty;
      }
    }
  }
  const auto best = std::max_element(scaled_.begin(), scaled_.end());  // the first of equals
  const double largest = *best;
  MDN_CHECK(largest != -std::numeric_limits<double>::infinity(),
            "all logits of the model are -infinity: nothing can be sampled");
  kept_.clear();
  if (options_.temperature == 0) {
    kept_.push_back({static_cast<int32_t>(best - scaled_.begin()), 1.0});
    return kept_;
  }
  // exp((x - largest) / t): the difference first, so that a tiny t cannot overflow
  kept_.reserve(scaled_.size());
  for (size_t i = 0; i < scaled_.size(); ++i) {
    const double weight = std::exp((scaled_[i] - largest) / options_.temperature);
    if (weight > 0) {
      kept_.push_back({static_cast<int32_t>(i), weight});
    }
  }
  keep_top_k();
  keep_top_p();
  keep_min_p();
  const double sum = sum_of(kept_);
  for (Candidate& c : kept_) {
    c.probability /= sum;
  }
  return kept_;
}

int64_t Sampler::next(std::span<const float> logits, const SeenTokens& seen, RandomStream& random) {
  const auto candidates = distribution(logits, seen);
  if (options_.temperature == 0) {
    return candidates.front().id;
  }
  const double u = random.next();
  double cumulative = 0;
  for (const Candidate& c : candidates) {
    cumulative += c.probability;
    if (u < cumulative) {
      return c.id;
    }
  }
  return candidates.back().id;  // the sum fell short of 1 by rounding
}

}  // namespace mdn::generate
