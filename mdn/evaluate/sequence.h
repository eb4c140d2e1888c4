// The one question that evaluation asks of a model: after these tokens, how likely are those?
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

#include "mdn/data/batches.h"

namespace mdn::evaluate {

using data::kIgnoredTarget;

/// Tokens a model reads and, for each, what should follow it: a token, or kIgnoredTarget where
/// nothing is asked. Both have the same length.
struct Sequence {
  std::vector<int64_t> inputs;
  std::vector<int64_t> targets;
};

/// The answer, one entry for each target that is not ignored, in order.
struct Score {
  std::vector<double> log_probs;  // natural logarithms
  std::vector<uint8_t> matched;  // whether the target has the largest probability (first of equals)

  double log_likelihood() const { return std::accumulate(log_probs.begin(), log_probs.end(), 0.0); }
  /// Whether greedy decoding would have given exactly the targets.
  bool all_matched() const {
    return std::accumulate(matched.begin(), matched.end(), size_t{0}) == matched.size();
  }
};

}  // namespace mdn::evaluate
