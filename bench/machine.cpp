#include "bench/machine.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/machine.cpp"
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "bench/sgemm-inl.h"

#if HWY_ONCE
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"

namespace mdn::kernels::cpu {
HWY_EXPORT(sgemm_rows);
}  // namespace mdn::kernels::cpu

namespace mdn::bench {

Timing time_calls(const std::function<void()>& body, double seconds, int least) {
  using Clock = std::chrono::steady_clock;
  body();
  std::vector<double> times;
  const auto begin = Clock::now();
  while (static_cast<int>(times.size()) < least ||
         std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    const auto start = Clock::now();
    body();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

std::string describe_cpu() {
  std::ifstream info("/proc/cpuinfo");
  std::string line;
  std::string name = "unknown processor";
  while (std::getline(info, line)) {
    if (line.rfind("model name", 0) == 0) {
      name = line.substr(line.find(':') + 2);
      break;
    }
  }
  const int64_t best = hwy::SupportedTargets() & -hwy::SupportedTargets();
  return fmt::format("{}, {} threads, {}", name, num_threads(), hwy::TargetName(best));
}

double measure_sgemm() {
  constexpr int64_t n = 1024;
  std::vector<float> a(n * n, 0.5f), b(n * n, 0.25f), packed(n * n), c(n * n);
  const Timing time = time_calls([&] {
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t column = 0; column < n; ++column) {
        packed[(column / 16 * n + row) * 16 + column % 16] = b[row * n + column];
      }
    }
    // Each task multiplies a band of rows.
    const int64_t tasks = num_threads() * 2;
    parallel_for(tasks, [&](int64_t task, int) {
      const auto sgemm = HWY_DYNAMIC_DISPATCH(kernels::cpu::sgemm_rows);
      sgemm(n, n * task / tasks, n * (task + 1) / tasks, a.data(), packed.data(), c.data());
    });
  });
  MDN_CHECK(c[0] == 128.0f && c[n * n - 1] == 128.0f, "the product is {} and should be 128", c[0]);
  return 2.0 * n * n * n / time.best;
}

double measure_copy() {
  constexpr size_t kBytes = size_t{256} << 20;
  const auto from = std::make_unique<char[]>(kBytes);
  const auto to = std::make_unique<char[]>(kBytes);
  std::memset(from.get(), 1, kBytes);
  std::memset(to.get(), 2, kBytes);
  const int64_t tasks = num_threads();
  const Timing time = time_calls([&] {
    parallel_for(tasks, [&](int64_t task, int) {
      const size_t begin = kBytes * task / tasks;
      const size_t end = kBytes * (task + 1) / tasks;
      std::memcpy(to.get() + begin, from.get() + begin, end - begin);
    });
  });
  return 2.0 * kBytes / time.best;
}

}  // namespace mdn::bench
#endif  // HWY_ONCE
