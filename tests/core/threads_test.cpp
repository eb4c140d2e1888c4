#include "mdn/core/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

namespace mdn {
namespace {

TEST(ParallelFor, CallsEveryIndexOnce) {
  for (const int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
    std::atomic<bool> thread_in_range{true};
    parallel_for(count, [&](int64_t index, int thread) {
      ++calls[static_cast<size_t>(index)];
      if (thread < 0 || thread >= num_threads()) {
        thread_in_range = false;
      }
    });
    for (const std::atomic<int>& called : calls) {
      EXPECT_EQ(called, 1);
    }
    EXPECT_TRUE(thread_in_range);
  }
}

TEST(ParallelFor, RethrowsABodysException) {
  for (const int64_t bad : {0, 63, 99}) {
    try {
      parallel_for(100, [&](int64_t index, int) {
        if (index == bad) {
          throw std::runtime_error("index " + std::to_string(index));
        }
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(error.what(), "index " + std::to_string(bad));
    }
  }
  std::atomic<int> calls{0};
  parallel_for(10, [&](int64_t, int) { ++calls; });  // usable afterwards
  EXPECT_EQ(calls, 10);
}

}  // namespace
}  // namespace mdn
