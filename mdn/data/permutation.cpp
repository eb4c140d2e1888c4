#include "mdn/data/permutation.h"

#include <bit>

#include "mdn/core/error.h"

namespace mdn::data {
namespace {

__extension__ using Wide = unsigned __int128;

// Fewer rounds leave patterns in small domains, where a half has only a few bits.
constexpr int kRounds = 6;

}  // namespace

// A multiply moves bits up, a shifted exclusive-or moves them down; two of each reach everywhere.
// The constants are the odd 64-bit numbers that murmur3's finaliser made common.
uint64_t mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  x ^= x >> 33;
  return x;
}

// The odd constant is 2^64 / golden ratio: consecutive counters land far apart.
uint64_t keyed_random(uint64_t key, uint64_t counter) {
  return mix(mix(key + 0x9e3779b97f4a7c15ULL * (counter + 1)) ^ key);
}

// floor(random * bound / 2^64)
int64_t keyed_below(uint64_t key, uint64_t counter, int64_t bound) {
  MDN_CHECK(bound >= 1, "a random number below {} is asked for; the bound must be at least 1",
            bound);
  const Wide product = static_cast<Wide>(keyed_random(key, counter)) * static_cast<Wide>(bound);
  return static_cast<int64_t>(product >> 64);
}

uint64_t derive_key(int64_t seed, uint64_t purpose, int64_t epoch) {
  const uint64_t of_purpose = keyed_random(static_cast<uint64_t>(seed), purpose);
  return keyed_random(of_purpose, static_cast<uint64_t>(epoch));
}

Permutation::Permutation(int64_t size, uint64_t key) : size_(size), key_(key) {
  MDN_CHECK(size >= 0, "a permutation of {} things; at least 0 are allowed", size);
  const int bits = size > 1 ? std::bit_width(static_cast<uint64_t>(size) - 1) : 1;
  half_bits_ = (bits + 1) / 2;
}

// (L, R) <- (R, L ^ f(R, round)), `kRounds` times: invertible whatever f is.
uint64_t Permutation::encrypt(uint64_t x) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = x >> half_bits_;
  uint64_t right = x & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t next = left ^ (keyed_random(key_ + round, right) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::operator()(int64_t i) const {
  MDN_CHECK(i >= 0 && i < size_, "place {} of a permutation of {}; allowed are 0 to {}", i, size_,
            size_ - 1);
  // The network permutes a power of 4 at least as large as size_; following it from a member until
  // it comes back to one is a permutation of the members.
  auto x = static_cast<uint64_t>(i);
  do {
    x = encrypt(x);
  } while (x >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(x);
}

}  // namespace mdn::data
