// Draws by tensor operations against the sampler's, on the CPU.
#include "mdn/generate/device_sampler.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <limits>

namespace mdn::generate {
namespace {

TEST(DeviceSampler, DrawsWhatTheSamplerDraws) {
  constexpr int64_t kRows = 200, kVocab = 61;
  const at::Generator generator = at::detail::createCPUGenerator(17);
  // Rounded to halves: many logits are equal.
  at::Tensor logits = (at::randn({kRows, kVocab}, generator) * 4).round() / 2;
  logits.select(1, 7).fill_(-std::numeric_limits<float>::infinity());
  for (const double temperature : {0.0, 0.05, 0.7, 1.0, 3.0}) {
    for (const int64_t top_k : {0, 1, 5, 61, 100}) {
      for (const double top_p : {1.0, 0.9, 0.3, 1e-9}) {
        for (const double min_p : {0.0, 0.2, 1.0}) {
          SCOPED_TRACE(fmt::format("temperature {} top-k {} top-p {} min-p {}", temperature, top_k,
                                   top_p, min_p));
          const SamplerOptions options{
              .temperature = temperature, .top_k = top_k, .top_p = top_p, .min_p = min_p};
          Sampler sampler(options);
          std::vector<int64_t> want;
          at::Tensor uniform = at::empty({kRows}, at::kDouble);
          for (int64_t row = 0; row < kRows; ++row) {
            RandomStream random{.seed = 5, .stream = static_cast<uint64_t>(row)};
            RandomStream same = random;
            uniform.mutable_data_ptr<double>()[row] = same.next();
            want.push_back(
                sampler.next({logits.const_data_ptr<float>() + row * kVocab, kVocab}, {}, random));
          }
          const at::Tensor got = draw(logits, options, uniform);
          EXPECT_TRUE(at::equal(got, at::tensor(want, at::kLong).unsqueeze(1)));
        }
      }
    }
  }
}

// Numbers at either end: the first token with any weight, and the last.
TEST(DeviceSampler, TheEndsAreTokensThatMayBeDrawn) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const at::Tensor logits = at::tensor({kNever, 1.0f, 2.0f, 0.5f, kNever}).unsqueeze(0);
  const auto drawn = [&](double u) {
    return draw(logits, {}, at::full({1}, u, at::kDouble)).item<int64_t>();
  };
  EXPECT_EQ(drawn(0), 1);
  EXPECT_EQ(drawn(1 - 0x1p-53), 3);
}

}  // namespace
}  // namespace mdn::generate
