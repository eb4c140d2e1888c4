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

HWY_BEFORE_NAMESPACE();
namespace mdn::bench {
namespace HWY_NAMESPACE {

/// Copies `count` floats, a multiple of 64, between cache lines, without reading the target.
void copy_streaming(const float* from, float* to, int64_t count) {
  const hwy::HWY_NAMESPACE::CappedTag<float, 16> d;
  const auto lanes = static_cast<int64_t>(hwy::HWY_NAMESPACE::Lanes(d));
  for (int64_t i = 0; i < count; i += lanes) {
    hwy::HWY_NAMESPACE::Stream(hwy::HWY_NAMESPACE::Load(d, from + i), d, to + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::bench
HWY_AFTER_NAMESPACE();

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

double measure_sgemm(double seconds) {
  constexpr int64_t n = 1024;
  std::vector<float> a(n * n, 0.5f), b(n * n, 0.25f), packed(n * n), c(n * n);
  const Timing time = time_calls(
      [&] {
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
      },
      seconds);
  MDN_CHECK(c[0] == 128.0f && c[n * n - 1] == 128.0f, "the product is {} and should be 128", c[0]);
  return 2.0 * n * n * n / time.best;
}

HWY_EXPORT(copy_streaming);

double measure_copy(double seconds) {
  constexpr int64_t kFloats = int64_t{64} << 20;
  const auto release = [](float* memory) { std::free(memory); };
  const auto allocate = [&] {
    return std::unique_ptr<float, decltype(release)>(
        static_cast<float*>(std::aligned_alloc(64, kFloats * sizeof(float))), release);
  };
  const auto from = allocate();
  const auto to = allocate();
  std::fill_n(from.get(), kFloats, 1.0f);
  std::fill_n(to.get(), kFloats, 2.0f);
  const int64_t tasks = num_threads();
  const auto time = [&](const auto& copy) {
    return time_calls(
               [&] {
                 parallel_for(tasks, [&](int64_t task, int) {
                   const int64_t begin = kFloats / 64 * task / tasks * 64;
                   const int64_t end = kFloats / 64 * (task + 1) / tasks * 64;
                   copy(from.get() + begin, to.get() + begin, end - begin);
                 });
               },
               seconds / 2)
        .best;
  };
  const double plain = time([](const float* source, float* target, int64_t count) {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  });
  const double streaming = time([](const float* source, float* target, int64_t count) {
    HWY_DYNAMIC_DISPATCH(copy_streaming)(source, target, count);
  });
  return 2.0 * sizeof(float) * kFloats / std::min(plain, streaming);
}

}  // namespace mdn::bench
#endif  // HWY_ONCE
