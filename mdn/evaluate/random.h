// Random draws of the generators: example i of a seed is computed, not drawn after the ones before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "mdn/data/permutation.h"

namespace mdn::evaluate {

class Random {
 public:
  /// Independent streams for different seed, purpose or index.
  Random(int64_t seed, uint64_t purpose, int64_t index)
      : key_(data::derive_key(seed, purpose, index)) {}

  uint64_t bits() { return data::keyed_random(key_, counter_++); }
  int64_t below(int64_t bound) { return data::keyed_below(key_, counter_++, bound); }
  /// In (0, 1].
  double uniform() { return (static_cast<double>(bits() >> 11) + 1) * 0x1p-53; }

  template <class T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) {
      std::swap(values[i - 1], values[static_cast<size_t>(below(static_cast<int64_t>(i)))]);
    }
  }

  /// `count` different numbers in [0, bound), in random order; count <= bound.
  std::vector<int64_t> sample(int64_t count, int64_t bound);

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace mdn::evaluate
