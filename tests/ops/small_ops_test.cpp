// The fused float32 kernels of short_conv, rms_norm and swiglu against ATen in float64: the same
// operator, given float64 tensors, takes ATen's operations and autograd.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <omp.h>
#include <torch/csrc/autograd/autograd.h>

#include "mdn/core/error.h"
#include "mdn/ops/rms_norm.h"
#include "mdn/ops/rotary.h"
#include "mdn/ops/short_conv.h"
#include "mdn/ops/swiglu.h"

namespace mdn::ops {
namespace {

using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// An output or gradient is a sum of at most `terms` float32 products and a few roundings of its
// own, so its error is below (terms + 16) u times the terms' norms; 4 covers cancellation against
// the result's norm, which random inputs keep moderate.
void expect_close(const at::Tensor& got, const at::Tensor& want, int64_t terms, const char* what) {
  const double allowed = 4 * (std::sqrt(static_cast<double>(terms)) + 16) * 0x1p-24;
  const double error =
      ((got.to(at::kDouble) - want).norm() / want.norm().clamp_min(1e-30)).item<double>();
  EXPECT_LE(error, allowed) << what;
}

void compare(const std::vector<at::Tensor>& inputs, const Function& f, int64_t terms) {
  std::vector<at::Tensor> results[2];
  for (int wide = 0; wide < 2; ++wide) {
    std::vector<at::Tensor> x;
    for (const at::Tensor& input : inputs) {
      x.push_back(input.to(wide ? at::kDouble : at::kFloat).detach().requires_grad_(true));
    }
    const at::Tensor y = f(x);
    const at::Tensor d_y = at::cos(at::arange(y.numel(), at::kFloat)).view(y.sizes());
    results[wide] = torch::autograd::grad({y}, x, {d_y.to(y.scalar_type())});
    results[wide].push_back(y.detach());
  }
  for (size_t i = 0; i < results[0].size(); ++i) {
    expect_close(results[0][i], results[1][i], terms,
                 i + 1 == results[0].size() ? "output" : fmt::format("gradient {}", i).c_str());
  }
}

at::Tensor random(std::vector<int64_t> shape, double scale = 1) {
  static const at::Generator generator = at::detail::createCPUGenerator(7);
  return at::randn(shape, generator, at::kFloat) * scale;
}

TEST(ShortConv, MatchesATen) {
  for (int64_t C : {1, 7, 8, 64, 100}) {
    for (int64_t T : {1, 2, 3, 127, 128, 129, 300}) {
      for (int64_t W : {1, 2, 4, 5}) {
        SCOPED_TRACE(fmt::format("C {} T {} W {}", C, T, W));
        compare(
            {random({2, T, C}), random({C, 1, W})},
            [](const auto& x) { return short_conv(x[0], x[1], std::nullopt); }, 2 * T);
      }
    }
  }
}

TEST(ShortConv, PackedSequencesStartAfresh) {
  const at::Tensor cu =
      at::tensor(std::vector<int64_t>{0, 0, 1, 3, 3, 130, 131, 300, 300}, at::kLong);
  compare(
      {random({1, 300, 24}), random({24, 1, 4})},
      [&](const auto& x) { return short_conv(x[0], x[1], cu); }, 300);
}

TEST(ShortConv, ABiasIsAddedBeforeTheSilu) {
  const at::Tensor x = random({2, 9, 5}), w = random({5, 1, 4}), b = random({5});
  // A convolution whose every tap is 0 leaves silu(bias).
  const at::Tensor y = short_conv(x, at::zeros_like(w), std::nullopt, b);
  EXPECT_TRUE(at::allclose(y, at::silu(b).expand_as(y)));
  // A bias of 0 is none.
  EXPECT_TRUE(
      at::equal(short_conv(x, w, std::nullopt, at::zeros_like(b)), short_conv(x, w, std::nullopt)));
  // One channel is left out: of one token its gradient is a single number, which may all cancel.
  for (int64_t C : {7, 8, 100}) {
    for (int64_t T : {1, 3, 129, 300}) {
      for (int64_t W : {1, 4}) {
        SCOPED_TRACE(fmt::format("C {} T {} W {}", C, T, W));
        compare(
            {random({2, T, C}), random({C, 1, W}), random({C})},
            [](const auto& t) { return short_conv(t[0], t[1], std::nullopt, t[2]); }, 2 * T);
      }
    }
  }
  const at::Tensor cu =
      at::tensor(std::vector<int64_t>{0, 0, 1, 3, 3, 130, 131, 300, 300}, at::kLong);
  compare(
      {random({1, 300, 24}), random({24, 1, 4}), random({24})},
      [&](const auto& t) { return short_conv(t[0], t[1], cu, t[2]); }, 300);
  EXPECT_THROW(short_conv(x, w, std::nullopt, random({4})), Error);
}

TEST(RmsNorm, MatchesATen) {
  // D = 1 is left out: there y = ±weight and the gradient of x is all cancellation.
  for (int64_t D : {2, 7, 8, 64, 100, 257}) {
    for (int64_t rows : {1, 127, 129, 300}) {
      SCOPED_TRACE(fmt::format("D {} rows {}", D, rows));
      compare(
          {random({rows, D}), random({D})},
          [](const auto& x) { return rms_norm(x[0], x[1], 1e-6); }, rows + D);
      for (const auto gating : {RmsNormGating::kSigmoid, RmsNormGating::kSilu}) {
        compare(
            {random({rows, D}), random({D}), random({rows, D}, 4)},
            [&](const auto& x) { return rms_norm(x[0], x[1], 1e-6, x[2], gating); }, rows + D);
      }
      // With the gate first, rows of 2 are left out: what a large gate multiplies is all
      // cancellation.
      if (D == 2) {
        continue;
      }
      compare(
          {random({rows, D}), random({D}), random({rows, D}, 4)},
          [](const auto& x) { return rms_norm(x[0], x[1], 1e-6, x[2], RmsNormGating::kSiluFirst); },
          rows + D);
      compare(
          {random({rows, D}), random({D}), random({rows, D}, 4), random({rows, D}), random({D})},
          [](const auto& x) {
            return rms_norm(x[0], x[1], 1e-6, x[2], RmsNormGating::kSiluFirst, x[3], x[4]);
          },
          rows + D);
    }
  }
}

TEST(RmsNorm, ExtremeGatesStayFinite) {
  const at::Tensor x = random({4, 16}), w = at::ones({16});
  for (double gate : {-1e4, -90.0, 90.0, 1e4}) {
    for (const auto gating :
         {RmsNormGating::kSigmoid, RmsNormGating::kSilu, RmsNormGating::kSiluFirst}) {
      const at::Tensor y = rms_norm(x, w, 1e-6, at::full({4, 16}, gate, at::kFloat), gating);
      EXPECT_TRUE(y.isfinite().all().item<bool>()) << gate;
    }
  }
}

TEST(Swiglu, MatchesATen) {
  for (int64_t n : {1, 7, 8, 16383, 16384, 16385, 50000}) {
    SCOPED_TRACE(n);
    compare(
        {random({n}, 3), random({n})}, [](const auto& x) { return swiglu(x[0], x[1]); }, 1);
  }
}

// Halves as real and imaginary parts: times exp(i angle).
TEST(Rotary, TurnsHalvesByThePosition) {
  const at::Tensor x = random({2, 5, 3, 8}).to(at::kDouble);
  const at::Tensor positions = at::tensor(std::vector<int64_t>{0, 1, 0, 1, 700}, at::kLong);
  const at::Tensor exponents = at::arange(4, at::kDouble) / -4;
  const at::Tensor angle = positions.view({5, 1, 1}) * at::pow(10000.0, exponents);
  const auto halves = x.chunk(2, -1);
  const at::Tensor turned =
      at::complex(halves[0], halves[1]) * at::polar(at::ones_like(angle), angle);
  const at::Tensor want = at::cat({at::real(turned), at::imag(turned)}, -1);
  EXPECT_LT((rotary(x, positions, 10000) - want).norm().item<double>(),
            1e-14 * want.norm().item<double>());
  EXPECT_THROW(rotary(x.narrow(3, 0, 7), positions, 10000), Error);
  EXPECT_THROW(rotary(x, positions.narrow(0, 0, 4), 10000), Error);
}

TEST(SmallOps, SameBitsForAnyNumberOfThreads) {
  const at::Tensor x = random({3, 300, 40}), w = random({40, 1, 4}), n = random({40});
  const at::Tensor b = random({40});
  std::vector<std::vector<at::Tensor>> results;
  const int before = omp_get_max_threads();
  for (int threads : {1, 2, 3}) {
    omp_set_num_threads(threads);
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& t : {x, w, n, b}) {
      leaves.push_back(t.clone().requires_grad_(true));
    }
    const at::Tensor y =
        rms_norm(short_conv(leaves[0], leaves[1], std::nullopt, leaves[3]), leaves[2], 1e-6);
    results.push_back(torch::autograd::grad({y.square().sum()}, leaves));
  }
  omp_set_num_threads(before);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(at::equal(results[0][i], results[1][i]));
    EXPECT_TRUE(at::equal(results[0][i], results[2][i]));
  }
}

TEST(SmallOps, BadCallsSayWhy) {
  EXPECT_THROW(short_conv(random({2, 5, 4}), random({3, 1, 4}), std::nullopt), Error);
  EXPECT_THROW(short_conv(random({5, 4}), random({4, 1, 4}), std::nullopt), Error);
  EXPECT_THROW(short_conv(random({1, 5, 4}), random({4, 1, 4}),
                          at::tensor(std::vector<int64_t>{0, 4}, at::kLong)),
               Error);
  EXPECT_THROW(rms_norm(random({2, 5}), random({4}), 1e-6), Error);
  EXPECT_THROW(rms_norm(random({2, 5}), random({5}), 1e-6, random({2, 5}), RmsNormGating::kSilu,
                        random({2, 5}), random({5})),
               Error);
  EXPECT_THROW(swiglu(random({2, 5}), random({5})), Error);
}

}  // namespace
}  // namespace mdn::ops
