// Keyed random numbers and permutations without tables: the n-th value is computed, not drawn, so
// any place of a shuffled order can be visited at once, on any machine, with the same result.
#pragma once

#include <cstdint>

namespace mdn::data {

/// A bijective mix of 64 bits in which every input bit reaches every output bit.
uint64_t mix(uint64_t x);

/// A 64-bit value that a key and a counter decide.
uint64_t keyed_random(uint64_t key, uint64_t counter);

/// The same, uniform in [0, bound); bound >= 1. Exact to 2^-64 * bound.
int64_t keyed_below(uint64_t key, uint64_t counter, int64_t bound);

/// A key for a use of a seed: different `purpose` or `epoch` give unrelated orders.
uint64_t derive_key(int64_t seed, uint64_t purpose, int64_t epoch);

/// A permutation of [0, size) chosen by a key: a Feistel network over the next even number of bits,
/// walked until it lands inside (at most 4 steps on average).
class Permutation {
 public:
  Permutation() = default;
  Permutation(int64_t size, uint64_t key);
  int64_t size() const { return size_; }
  /// Throws unless 0 <= i < size().
  int64_t operator()(int64_t i) const;

 private:
  uint64_t encrypt(uint64_t x) const;

  int64_t size_ = 0;
  uint64_t key_ = 0;
  int half_bits_ = 1;
};

}  // namespace mdn::data
