#include "mdn/data/permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "mdn/core/error.h"

namespace mdn::data {
namespace {

TEST(Permutation, VisitsEveryPlaceOnce) {
  for (const int64_t size : {1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (const uint64_t key : {0ULL, 1ULL, 0x123456789abcdefULL}) {
      const Permutation permutation(size, key);
      std::vector<int> seen(static_cast<size_t>(size), 0);
      for (int64_t i = 0; i < size; ++i) {
        ++seen.at(static_cast<size_t>(permutation(i)));
      }
      EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), size) << "size " << size;
    }
  }
}

TEST(Permutation, ReachesHugeSizesWithoutATable) {
  const int64_t size = (int64_t{1} << 60) + 12345;
  const Permutation permutation(size, 7);
  std::set<int64_t> values;
  for (int64_t i = size - 1000; i < size; ++i) {
    values.insert(permutation(i));
  }
  EXPECT_EQ(values.size(), 1000U);
  EXPECT_GE(*values.begin(), 0);
  EXPECT_LT(*values.rbegin(), size);
}

TEST(Permutation, RefusesPlacesOutside) {
  const Permutation permutation(5, 0);
  EXPECT_THROW(permutation(-1), Error);
  EXPECT_THROW(permutation(5), Error);
  EXPECT_THROW(Permutation(0, 0)(0), Error);
  EXPECT_THROW(Permutation(-1, 0), Error);
}

// Over n keys each (place, value) pair of k is binomial with mean n/k; the sum of squared
// deviations over their means is chi-squared with (k-1)^2 degrees of freedom: mean (k-1)^2,
// deviation (k-1) sqrt(2). Five deviations: a right implementation fails once in a million keys,
// and the keys are fixed.
TEST(Permutation, IsUniformOverKeys) {
  constexpr int64_t k = 10;
  constexpr int n = 20000;
  std::vector<int> count(k * k, 0);
  for (int key = 0; key < n; ++key) {
    const Permutation permutation(k, derive_key(key, 1, 0));
    for (int64_t i = 0; i < k; ++i) {
      ++count[static_cast<size_t>(i * k + permutation(i))];
    }
  }
  double chi = 0.0;
  const double mean = static_cast<double>(n) / k;
  for (const int c : count) {
    chi += (c - mean) * (c - mean) / mean;
  }
  EXPECT_NEAR(chi, (k - 1) * (k - 1), 5 * (k - 1) * std::sqrt(2.0));
}

TEST(KeyedBelow, IsUniformAndStaysBelow) {
  constexpr int64_t k = 37;
  constexpr int n = 37000;
  std::vector<int> count(k, 0);
  for (int i = 0; i < n; ++i) {
    ++count.at(static_cast<size_t>(keyed_below(99, static_cast<uint64_t>(i), k)));
  }
  double chi = 0.0;
  for (const int c : count) {
    chi += (c - 1000.0) * (c - 1000.0) / 1000.0;
  }
  EXPECT_NEAR(chi, k - 1, 5 * std::sqrt(2.0 * (k - 1)));
  EXPECT_THROW(keyed_below(0, 0, 0), Error);
}

// Written down once: a change of these would silently change what a resumed run reads.
TEST(Permutation, StaysTheSameForever) {
  const Permutation permutation(10, derive_key(1234, 2, 3));
  std::vector<int64_t> order;
  for (int64_t i = 0; i < 10; ++i) {
    order.push_back(permutation(i));
  }
  EXPECT_EQ(order, (std::vector<int64_t>{7, 8, 1, 9, 0, 6, 2, 4, 3, 5}));
  EXPECT_EQ(keyed_below(derive_key(1234, 4, 0), 17, 1'000'000), 731135);
}

}  // namespace
}  // namespace mdn::data
