#include "mdn/evaluate/random.h"

#include <unordered_map>

#include "mdn/core/error.h"

namespace mdn::evaluate {

// The beginning of a Fisher-Yates shuffle of 0, 1, ..., of which only moved entries are kept.
std::vector<int64_t> Random::sample(int64_t count, int64_t bound) {
  MDN_CHECK(count >= 0 && count <= bound, "{} different numbers below {}", count, bound);
  std::unordered_map<int64_t, int64_t> moved;
  const auto at = [&](int64_t i) {
    const auto found = moved.find(i);
    return found == moved.end() ? i : found->second;
  };
  std::vector<int64_t> drawn;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t other = i + below(bound - i);
    drawn.push_back(at(other));
    moved[other] = at(i);
  }
  return drawn;
}

}  // namespace mdn::evaluate
