// The CUDA kernels of the small operators against ATen in float64 on the CPU: the same operator,
// given float64 tensors, takes ATen's operations and autograd. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "mdn/core/error.h"
#include "mdn/ops/cross_entropy.h"
#include "mdn/ops/decay_gates.h"
#include "mdn/ops/embedding.h"
#include "mdn/ops/general_momentum_delta_rule.h"
#include "mdn/ops/general_momentum_masks.h"
#include "mdn/ops/kimi_delta_rule.h"
#include "mdn/ops/momentum_delta_rule.h"
#include "mdn/ops/momentum_gates.h"
#include "mdn/ops/residual_mlp.h"
#include "mdn/ops/rms_norm.h"
#include "mdn/ops/rotary.h"
#include "mdn/ops/short_conv.h"
#include "mdn/ops/swiglu.h"
#include "mdn/ops/unit_lower_inverse.h"

namespace mdn::ops {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<Tensors(const Tensors&)>;

double unit(at::ScalarType type) {
  return type == at::kBFloat16 ? 0x1p-8 : type == at::kHalf ? 0x1p-11 : 0x1p-24;
}

at::Tensor random(std::vector<int64_t> shape, double scale = 1) {
  static const at::Generator generator = at::detail::createCPUGenerator(11);
  return at::randn(shape, generator, at::kFloat) * scale;
}

// Outputs and gradients of f at inputs of a type on a device, with the same gradients of the
// outputs.
Tensors run(const Function& f, const Tensors& inputs, at::ScalarType type, c10::Device device) {
  Tensors x;
  for (const at::Tensor& input : inputs) {
    x.push_back(input.to(device, type).detach().requires_grad_(true));
  }
  const Tensors y = f(x);
  Tensors d_y, results;
  for (const at::Tensor& out : y) {
    const at::Tensor d = (1 + 0.5 * at::cos(at::arange(out.numel(), at::kFloat))).view(out.sizes());
    d_y.push_back(d.to(at::kBFloat16).to(device, out.scalar_type()));
    results.push_back(out.detach());
  }
  for (const at::Tensor& gradient : torch::autograd::grad(y, x, d_y)) {
    results.push_back(gradient);
  }
  return results;
}

// `roundings`: how many values in the type lie between input and result, each off by at most one
// unit roundoff u, besides sums of `terms` float32 products, whose error grows like the root of
// their number. 2 covers cancellation against the result's norm, which random inputs keep moderate.
void compare(const Tensors& inputs, const Function& f, int64_t terms, double roundings = 2) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    Tensors rounded;  // both sides get what the type can hold
    for (const at::Tensor& input : inputs) {
      rounded.push_back(input.to(type));
    }
    const Tensors want = run(f, rounded, at::kDouble, at::kCPU);
    const Tensors got = run(f, rounded, type, at::kCUDA);
    ASSERT_EQ(got.size(), want.size());
    const double sums = 4 * (std::sqrt(static_cast<double>(terms)) + 16) * 0x1p-24;
    const double allowed = 2 * (roundings * unit(type) + sums);
    for (size_t i = 0; i < got.size(); ++i) {
      const at::Tensor difference = got[i].to(at::kCPU, at::kDouble) - want[i];
      const double error = (difference.norm() / want[i].norm().clamp_min(1e-30)).item<double>();
      EXPECT_LE(error, allowed) << c10::toString(type) << ", result " << i << " (outputs first)";
    }
  }
}

// Shapes come in two lists: what reaches every edge of the kernels, and a few small ones, which
// tools/gpu_check.sh also runs under compute-sanitizer.
enum class Shapes { kAll, kSmall };

class CudaOps : public testing::TestWithParam<Shapes> {
 protected:
  template <class T>
  static std::vector<T> pick(std::vector<T> all, std::vector<T> small) {
    return GetParam() == Shapes::kAll ? std::move(all) : std::move(small);
  }
};

std::string shapes_name(const testing::TestParamInfo<Shapes>& shapes) {
  return shapes.param == Shapes::kAll ? "all" : "small";
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaOps, testing::Values(Shapes::kAll, Shapes::kSmall),
                         shapes_name);

TEST_P(CudaOps, ShortConvMatchesATen) {
  for (const int64_t C : pick<int64_t>({8, 96, 256, 1032}, {96})) {
    for (const int64_t T : pick<int64_t>({1, 2, 3, 31, 32, 33, 300}, {1, 33})) {
      for (const int64_t W : pick<int64_t>({1, 2, 3, 4}, {3, 4})) {
        SCOPED_TRACE(fmt::format("C {} T {} W {}", C, T, W));
        compare(
            {random({3, T, C}), random({C, 1, W})},
            [](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], std::nullopt)}; },
            3 * T);
      }
    }
  }
}

TEST(CudaShortConv, ABiasIsAddedBeforeTheSilu) {
  for (const int64_t C : {8, 96, 1032}) {
    for (const int64_t T : {1, 3, 33, 300}) {
      SCOPED_TRACE(fmt::format("C {} T {}", C, T));
      compare(
          {random({3, T, C}), random({C, 1, 4}), random({C})},
          [](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], std::nullopt, x[2])}; },
          3 * T);
    }
  }
}

TEST(CudaShortConv, PackedSequencesStartAfresh) {
  const at::Tensor cu =
      at::tensor(std::vector<int64_t>{0, 0, 1, 3, 3, 34, 35, 130, 131, 300, 300}, at::kLong);
  compare(
      {random({1, 300, 24}), random({24, 1, 4})},
      [&](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], cu)}; }, 300);
  compare(
      {random({1, 300, 24}), random({24, 1, 4}), random({24})},
      [&](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], cu, x[2])}; }, 300);
}

// So many tokens that the backward pass gives a warp runs of dozens, which sequences start, end and
// lie within.
TEST(CudaShortConv, LongRuns) {
  compare(
      {random({2, 6001, 1032}), random({1032, 1, 4})},
      [](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], std::nullopt)}; }, 12002);
  std::vector<int64_t> bounds = {0};
  for (int64_t i = 0; bounds.back() < 12001; ++i) {
    bounds.push_back(
        std::min<int64_t>(bounds.back() + i * 7919 % 97 % (i % 5 == 0 ? 6 : 97), 12001));
  }
  const at::Tensor cu = at::tensor(bounds, at::kLong);
  compare(
      {random({1, 12001, 1032}), random({1032, 1, 4})},
      [&](const Tensors& x) -> Tensors { return {short_conv(x[0], x[1], cu)}; }, 12001);
}

// Token by token with a state against all tokens at once, in float64.
TEST(CudaShortConv, StepsEqualTheWhole) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t kTokens = 7;
  const auto exact = [](const at::Tensor& t) { return t.to(at::kCPU, at::kDouble); };
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const auto given = [&](const at::Tensor& t) { return t.to(type).to(at::kCUDA); };
    for (const int64_t C : {8, 12, 1032}) {  // 12: not the kernel's
      for (const int64_t W : {1, 2, 3, 4}) {
        for (const bool biased : {false, true}) {
          SCOPED_TRACE(fmt::format("{} C {} W {} bias {}", c10::toString(type), C, W, biased));
          const at::Tensor x = given(random({3, kTokens, C})), weight = given(random({C, 1, W}));
          const at::Tensor bias = given(random({C}));
          const at::Tensor state = at::zeros({3, W - 1, C}, x.options());
          Tensors steps;
          for (int64_t t = 0; t < kTokens; ++t) {
            steps.push_back(short_conv_step(x.select(1, t), weight, state,
                                            biased ? std::optional(bias) : std::nullopt));
          }
          const at::Tensor want = short_conv(exact(x), exact(weight), std::nullopt,
                                             biased ? std::optional(exact(bias)) : std::nullopt);
          const double allowed = 2 * (2 * unit(type) + 4 * (std::sqrt(4.0) + 16) * 0x1p-24);
          EXPECT_LE((exact(at::stack(steps, 1)) - want).norm().item<double>(),
                    allowed * want.norm().item<double>());
          EXPECT_TRUE(at::equal(state, x.narrow(1, kTokens - (W - 1), W - 1)));
        }
      }
    }
  }
}

// Columns of wider rows, read where they lie; aligned to 16 bytes or not.
TEST(CudaColumns, AreReadWhereTheyLie) {
  for (const int64_t first : {0, 8, 4, 1}) {
    SCOPED_TRACE(first);
    compare(
        {random({2, 70, 200}), random({64, 1, 4})},
        [&](const Tensors& x) -> Tensors {
          return {short_conv(x[0].narrow(2, first, 64), x[1], std::nullopt)};
        },
        140);
    compare(
        {random({2, 70, 200}), random({2, 70, 4, 16}), random({16})},
        [&](const Tensors& x) -> Tensors {
          const at::Tensor gate = x[0].narrow(2, first, 64);
          return {rms_norm(x[1], x[2], 1e-6, gate.unflatten(2, {4, 16})),
                  rms_norm(x[1].flatten(2), at::ones({64}, x[2].options()), 1e-6, gate,
                           RmsNormGating::kSiluFirst)};
        },
        1000);
  }
}

TEST_P(CudaOps, RmsNormMatchesATen) {
  for (const int64_t D : pick<int64_t>({8, 64, 104, 256, 512, 1024, 2048, 4096}, {64, 104, 1024})) {
    for (const int64_t rows : pick<int64_t>({1, 7, 129, 5000}, {1, 7})) {
      SCOPED_TRACE(fmt::format("D {} rows {}", D, rows));
      compare(
          {random({rows, D}), random({D})},
          [](const Tensors& x) -> Tensors { return {rms_norm(x[0], x[1], 1e-6)}; }, rows + D);
      for (const auto gating :
           {RmsNormGating::kSigmoid, RmsNormGating::kSilu, RmsNormGating::kSiluFirst}) {
        compare(
            {random({rows, D}), random({D}), random({rows, D}, 4)},
            [&](const Tensors& x) -> Tensors { return {rms_norm(x[0], x[1], 1e-6, x[2], gating)}; },
            rows + D);
      }
      compare(
          {random({rows, D}), random({D}), random({rows, D}, 4), random({rows, D}), random({D})},
          [](const Tensors& x) -> Tensors {
            return {rms_norm(x[0], x[1], 1e-6, x[2], RmsNormGating::kSiluFirst, x[3], x[4])};
          },
          rows + D);
    }
  }
}

TEST_P(CudaOps, EmbeddingMatchesATen) {
  for (const int64_t tokens : pick<int64_t>({1, 500, 8192}, {500})) {
    SCOPED_TRACE(tokens);
    const at::Tensor ids = (at::arange(tokens, at::kLong) * 37 % 101).view({1, tokens});
    compare(
        {random({103, 48})},
        [&](const Tensors& x) -> Tensors {
          return {ops::embedding(x[0], ids.to(x[0].device()), 5)};
        },
        tokens / 101 + 1);
  }
}

TEST_P(CudaOps, SwigluMatchesATen) {
  for (const int64_t n : pick<int64_t>({1, 7, 8, 4096, 50001}, {7, 4096})) {
    SCOPED_TRACE(n);
    compare(
        {random({33, n}, 3), random({33, n})},
        [](const Tensors& x) -> Tensors { return {swiglu(x[0], x[1])}; }, 1);
  }
}

TEST_P(CudaOps, RotaryMatchesATen) {
  for (const int64_t d : pick<int64_t>({2, 6, 8, 16, 64, 128, 256}, {6, 64})) {
    for (const int64_t T : pick<int64_t>({1, 33, 300}, {33})) {
      SCOPED_TRACE(fmt::format("d {} T {}", d, T));
      // positions of two sequences, one of them far on
      const at::Tensor positions =
          at::cat({at::arange(T / 2, at::kLong), at::arange(T - T / 2, at::kLong) + 100'000});
      compare(
          {random({2, T, 3, d})},
          [&](const Tensors& x) -> Tensors {
            return {rotary(x[0], positions.to(x[0].device()), 10000.0)};
          },
          2);
    }
  }
}

TEST_P(CudaOps, MomentumGatesMatchATen) {
  for (const auto& [H, HV] :
       pick<std::pair<int64_t, int64_t>>({{1, 1}, {6, 6}, {2, 6}}, {{2, 6}})) {
    for (const int64_t tokens : pick<int64_t>({1, 1023, 1025, 4096}, {1, 1025})) {
      for (const std::optional<double> floor : {std::optional(-2.0), std::optional<double>()}) {
        SCOPED_TRACE(fmt::format("H {} HV {} tokens {}", H, HV, tokens));
        Tensors inputs;
        for (int i = 0; i < 4; ++i) {
          inputs.push_back(random({1, tokens, HV}, i == 3 ? 8 : 2));
        }
        for (const int64_t n : {H, H, H, HV, HV}) {
          inputs.push_back(random({n}));
        }
        // The gates are float32 from inputs of the type, so only the gradients of these round.
        compare(
            inputs,
            [&](const Tensors& x) -> Tensors {
              const auto y = momentum_gates({x[0], x[1], x[2], x[3]},
                                            {x[4], x[5], x[6], x[7], x[8]}, 32, floor);
              return {y.alpha, y.mu, y.eta, y.beta};
            },
            tokens);
      }
      compare(
          {random({1, tokens, HV}, 2), random({1, tokens, HV}, 2), random({1, tokens, HV}, 8),
           random({H}), random({H}), random({HV})},
          [&](const Tensors& x) -> Tensors {  // without momentum
            const auto y =
                momentum_gates({x[0], x[1], {}, x[2]}, {x[3], {}, x[4], x[5], {}}, 32, {});
            return {y.alpha, y.eta, y.beta};
          },
          tokens);
    }
  }
}

TEST(CudaMomentumGates, MoreHeadsThanABlockHas) {
  Tensors inputs;
  for (int i = 0; i < 4; ++i) {
    inputs.push_back(random({1, 50, 260}, 2));
  }
  for (const int64_t n : {130, 130, 130, 260, 260}) {
    inputs.push_back(random({n}));
  }
  compare(
      inputs,
      [](const Tensors& x) -> Tensors {
        const auto y =
            momentum_gates({x[0], x[1], x[2], x[3]}, {x[4], x[5], x[6], x[7], x[8]}, 32, -2.0);
        return {y.alpha, y.mu, y.eta, y.beta};
      },
      50);
}

TEST_P(CudaOps, DecayGatesMatchATen) {
  for (const int64_t HV : pick<int64_t>({1, 2, 6, 32, 33, 70}, {6, 33})) {
    for (const int64_t T : pick<int64_t>({1, 63, 65, 2048}, {1, 65})) {
      SCOPED_TRACE(fmt::format("HV {} T {}", HV, T));
      compare(
          {random({2, T, HV}, 3), random({2, T, HV}, 3), random({HV}), random({HV})},
          [](const Tensors& x) -> Tensors {
            const auto y = decay_gates(x[0], x[1], x[2], x[3], {.max_beta = 2});
            return {y.alpha, y.dt, y.beta};
          },
          2 * T);
      compare(
          {random({2, T, HV}, 3), random({HV}), random({HV})},
          [](const Tensors& x) -> Tensors {
            // limits that no softplus of a 16-bit number and a bias lies next to
            const auto y = decay_gates(x[0], {}, x[1], x[2], {.low = 0.1234567, .high = 2.345678});
            return {y.alpha, y.dt};
          },
          2 * T);
    }
  }
}

// As in GDN, which does not look at dt, and as columns of wider rows.
TEST(CudaDecayGates, OfColumns) {
  compare(
      {random({2, 70, 50}), random({6}), random({6})},
      [](const Tensors& x) -> Tensors {
        const auto y = decay_gates(x[0].narrow(2, 3, 6), x[0].narrow(2, 21, 6), x[1], x[2]);
        return {y.alpha, y.beta};
      },
      140);
}

TEST_P(CudaOps, LinearCrossEntropyMatchesATen) {
  for (const auto& [rows, vocab] : pick<std::pair<int64_t, int64_t>>(
           {{1, 5}, {300, 1000}, {600, 4099}, {5000, 50257}}, {{1, 5}, {40, 1000}})) {
    if (rows == 5000 && !at::hasCUDA()) {
      continue;
    }
    SCOPED_TRACE(fmt::format("rows {} vocab {}", rows, vocab));
    at::Tensor targets = at::arange(rows, at::kLong) * 7919 % vocab;
    if (rows > 3) {
      targets[3] = -100;
    }
    // Logits and their gradients round once each, and the sums over 64 and over the rows follow.
    // The sum of the losses rather than their mean: float16 cannot hold the mean's gradients.
    compare(
        {random({rows, 64}), random({vocab, 64}, 0.3)},
        [&](const Tensors& x) -> Tensors {
          return {linear_cross_entropy(x[0], x[1], targets.to(x[0].device())) *
                  static_cast<double>(rows)};
        },
        rows + 64, 4);
  }
}

TEST(CudaLinearCrossEntropy, ForeignTargetsMakeTheLossNaN) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const at::Tensor hidden = random({4, 8}).to(at::kCUDA), weight = random({16, 8}).to(at::kCUDA);
  for (const int64_t bad : {int64_t{-1}, int64_t{16}}) {
    const at::Tensor targets = at::full({4}, bad, at::kLong).to(at::kCUDA);
    EXPECT_TRUE(std::isnan(linear_cross_entropy(hidden, weight, targets).item<double>()));
  }
}

// Neither the logits of all tokens nor any in float32 exist at once.
TEST(CudaLinearCrossEntropy, TakesLittleMemory) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t kTokens = 16384, kVocab = 50257;
  const at::TensorOptions on_device(at::kCUDA);
  const at::Tensor hidden = at::ones({kTokens, 64}, on_device.dtype(at::kBFloat16));
  const at::Tensor weight = at::ones({kVocab, 64}, on_device.dtype(at::kFloat));
  const at::Tensor targets = at::zeros({kTokens}, on_device.dtype(at::kLong));
  hidden.requires_grad_();
  weight.requires_grad_();
  const auto memory = [&] {
    return c10::cuda::CUDACachingAllocator::getDeviceStats(hidden.get_device()).allocated_bytes[0];
  };
  c10::cuda::CUDACachingAllocator::resetPeakStats(hidden.get_device());
  const int64_t before = memory().current;
  torch::autograd::grad({linear_cross_entropy(hidden, weight, targets)}, {hidden, weight});
  EXPECT_LT(memory().peak - before, kTokens * kVocab * 2 / 2);  // half of bfloat16 logits
}

TEST(CudaResidualMlp, MatchesATen) {
  // Five products and norms deep, each with a rounding; forward values go into the gradients.
  compare(
      {random({2, 65, 128}), random({128}), random({192, 128}, 0.1), random({192, 128}, 0.1),
       random({128, 192}, 0.1)},
      [](const Tensors& x) -> Tensors {
        const ResidualMlp w{x[1], x[2], x[3], x[4]};
        if (residual_mlp_supports(x[0], w)) {
          return {residual_mlp(x[0], w, 1e-6)};
        }
        const at::Tensor n = rms_norm(x[0], x[1], 1e-6);
        return {x[0] + at::linear(swiglu(at::linear(n, x[2]), at::linear(n, x[3])), x[4])};
      },
      65 * 2 + 192, 8);
}

// Views that start off a multiple of 16 bytes, which the copy engine and wide loads cannot read.
TEST(CudaMomentumDeltaRule, ViewsMayStartAnywhere) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t B = 1, T = 130, H = 2, HV = 4, K = 128, V = 128;
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat}) {
    SCOPED_TRACE(c10::toString(type));
    Tensors plain;
    for (const auto& shape : {std::vector<int64_t>{B, T, H, K}, {B, T, H, K}, {B, T, HV, V}}) {
      plain.push_back(random(shape).to(at::kCUDA, type));
    }
    for (int gate = 0; gate < 4; ++gate) {
      plain.push_back(random({B, T, HV}).sigmoid().to(at::kCUDA));
    }
    for (int state = 0; state < 2; ++state) {
      plain.push_back(random({B, HV, V, K}, 0.25).to(at::kCUDA));
    }
    const auto results = [&](bool shifted) {
      Tensors x;
      for (const at::Tensor& p : plain) {
        at::Tensor copy = at::empty({p.numel() + 1}, p.options());
        copy = copy.narrow(0, shifted ? 1 : 0, p.numel()).view(p.sizes());
        x.push_back(copy.copy_(p).requires_grad_(true));
      }
      const auto [o, S, M] =
          momentum_delta_rule(x[0], x[1], x[2], x[3], x[4], x[5], x[6], std::nullopt, x[7], x[8],
                              std::nullopt, std::nullopt, true);
      Tensors all = {o.detach(), S.detach(), M.detach()};
      for (const at::Tensor& gradient : torch::autograd::grad({o, S, M}, x, {o, S, M})) {
        all.push_back(gradient);
      }
      return all;
    };
    const Tensors want = results(false), got = results(true);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_TRUE(at::equal(got[i], want[i])) << i;
    }
  }
}

// float32 is the chunkwise program there, the 16-bit types the kernels, which round operands of
// their products half a dozen times on the way.
// A step's states may be float16: then they are off by their rounding from those of a float32 step.
TEST(CudaMomentumDeltaRule, StepsTakeStatesOfFloat16) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t B = 3, H = 2, K = 64, V = 32;
  const auto given = [](const at::Tensor& x) { return x.to(at::kCUDA); };
  const at::Tensor q = given(random({B, H, K})), k = given(random({B, H, K})),
                   v = given(random({B, H, V})), alpha = given(at::sigmoid(random({B, H}))),
                   mu = given(at::sigmoid(random({B, H}))),
                   eta = given(at::sigmoid(random({B, H}))),
                   beta = given(at::sigmoid(random({B, H})));
  at::Tensor S = given(random({B, H, V, K})).to(at::kHalf).to(at::kFloat),
             M = S.flip(0).contiguous();
  at::Tensor half_S = S.to(at::kHalf), half_M = M.to(at::kHalf);
  const auto step = [&](at::Tensor& to_S, const at::Tensor& to_M) {
    return momentum_delta_rule_step(q, k, v, alpha, mu, eta, beta, to_S, to_M, std::nullopt,
                                    std::nullopt, std::nullopt, true);
  };
  const at::Tensor o = step(S, M), half_o = step(half_S, half_M);
  // Both read the same states, and sum their float32 products in different orders.
  const double sums = 4 * (std::sqrt(static_cast<double>(K)) + 16) * 0x1p-24;
  EXPECT_LE((half_o - o).norm().item<double>(), sums * o.norm().item<double>());
  for (const auto& [half, whole] : {std::pair{half_S, S}, {half_M, M}}) {
    EXPECT_EQ(half.scalar_type(), at::kHalf);
    const double error = (half.to(at::kFloat) - whole).norm().item<double>();
    EXPECT_LE(error, 0x1p-11 * whole.norm().item<double>());
    EXPECT_GT(error, 0);
  }
  at::Tensor cpu_S = half_S.to(at::kCPU);
  EXPECT_THROW(momentum_delta_rule_step(q.cpu(), k.cpu(), v.cpu(), alpha.cpu(), mu.cpu(), eta.cpu(),
                                        beta.cpu(), cpu_S, half_M.cpu(), std::nullopt, std::nullopt,
                                        std::nullopt, true),
               Error);
}

TEST(CudaKimiDeltaRule, MatchesTheReference) {
  constexpr int64_t T = 75, H = 2, HV = 4, K = 64, V = 32;
  const at::Tensor packed = at::tensor(std::vector<int64_t>{0, 1, 40, 40, 2 * T}, at::kLong);
  for (const auto& cu : {std::optional<at::Tensor>(), std::optional(packed)}) {
    SCOPED_TRACE(cu ? "packed" : "rows");
    const int64_t B = cu ? 1 : 2, N = cu ? packed.numel() - 1 : B, tokens = 2 * T / B;
    compare(
        {random({B, tokens, H, K}), random({B, tokens, H, K}), random({B, tokens, HV, V}),
         random({B, tokens, HV, K}), random({B, tokens, HV}), random({N, HV, V, K}, 0.25)},
        [&](const Tensors& x) -> Tensors {
          const auto gate = x[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
          const auto [o, S] = kimi_delta_rule(
              x[0], x[1], x[2], (-x[3].to(gate).square()).exp(), x[4].to(gate).sigmoid(),
              x[5].to(gate), cu ? std::optional(cu->to(x[0].device())) : cu, std::nullopt, true);
          return {o, S};
        },
        2 * T + K + V, 8);
  }
}

TEST(CudaKimiDeltaRule, StepsEqualTheWhole) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  constexpr int64_t B = 2, T = 6, H = 2, HV = 4, K = 48, V = 20;
  const Tensors x = {random({B, T, H, K}),         random({B, T, H, K}),
                     random({B, T, HV, V}),        (-random({B, T, HV, K}).square()).exp(),
                     random({B, T, HV}).sigmoid(), random({B, HV, V, K}, 0.25)};
  const auto [o, final_S] = kimi_delta_rule(
      x[0].to(at::kDouble), x[1].to(at::kDouble), x[2].to(at::kDouble), x[3].to(at::kDouble),
      x[4].to(at::kDouble), x[5].to(at::kDouble), std::nullopt, std::nullopt, true);
  at::Tensor S = x[5].to(at::kCUDA);
  Tensors steps;
  for (int64_t t = 0; t < T; ++t) {
    const auto token = [&](int i) { return x[i].select(1, t).to(at::kCUDA); };
    steps.push_back(kimi_delta_rule_step(token(0), token(1), token(2), token(3), token(4), S,
                                         std::nullopt, std::nullopt, true));
  }
  const auto error = [](const at::Tensor& got, const at::Tensor& want) {
    return ((got.to(at::kCPU, at::kDouble) - want).norm() / want.norm()).item<double>();
  };
  // Sums of some hundred float32 products, six times.
  EXPECT_LT(error(at::stack(steps, 1), o), 64 * 0x1p-24);
  EXPECT_LT(error(S, final_S), 64 * 0x1p-24);
}

// In float32, which is all that these kernels have: sums of up to 66 products, and products of up
// to 64 coefficients.
void compare_float32(const Tensors& inputs, const Function& f, int64_t terms) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const Tensors want = run(f, inputs, at::kDouble, at::kCPU);
  const Tensors got = run(f, inputs, at::kFloat, at::kCUDA);
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor difference = got[i].to(at::kCPU, at::kDouble) - want[i];
    EXPECT_LE(difference.norm().item<double>(), 8 * (std::sqrt(static_cast<double>(terms)) + 16) *
                                                    0x1p-24 * want[i].norm().item<double>())
        << "result " << i << " (outputs first)";
  }
}

TEST_P(CudaOps, GeneralMomentumMasksMatchATen) {
  for (const int64_t chunks : pick<int64_t>({1, 2, 301}, {2})) {
    SCOPED_TRACE(chunks);
    at::Tensor zeros_here_and_there = random({7, chunks, 64}).sigmoid();
    zeros_here_and_there.slice(2, 3, std::nullopt, 7).zero_();
    for (const at::Tensor& coefficients :
         {random({7, chunks, 64}).sigmoid(), zeros_here_and_there}) {
      compare_float32(
          {coefficients},
          [](const Tensors& x) -> Tensors {
            const auto y = general_momentum_masks(x[0]);
            return {y.G, y.H, y.from_states, y.read, y.to_states, y.ends};
          },
          64);
    }
  }
}

TEST_P(CudaOps, UnitLowerInverseMatchesATen) {
  for (const int64_t matrices : pick<int64_t>({1, 301}, {2})) {
    compare_float32(
        {random({matrices, 64, 64}, 0.1)},
        [](const Tensors& x) -> Tensors { return {unit_lower_inverse(x[0])}; }, 64);
  }
}

// A program in float32 whatever the type of q, k, v.
TEST(CudaGeneralMomentumDeltaRule, MatchesFloat64) {
  constexpr int64_t T = 75, H = 2, HV = 4, K = 64, V = 32;
  const at::Tensor packed = at::tensor(std::vector<int64_t>{0, 1, 40, 40, 2 * T}, at::kLong);
  for (const auto& cu : {std::optional<at::Tensor>(), std::optional(packed)}) {
    SCOPED_TRACE(cu ? "packed" : "rows");
    const int64_t B = cu ? 1 : 2, N = cu ? packed.numel() - 1 : B, tokens = 2 * T / B;
    Tensors inputs = {random({B, tokens, H, K}), random({B, tokens, H, K}),
                      random({B, tokens, HV, V})};
    for (int gate = 0; gate < 7; ++gate) {
      inputs.push_back(random({B, tokens, HV}));
    }
    inputs.push_back(random({N, HV, V, K}, 0.25));
    inputs.push_back(random({N, HV, V, K}, 0.25));
    compare(
        inputs,
        [&](const Tensors& x) -> Tensors {
          const auto type = x[0].scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
          const auto gate = [&](size_t i) { return x[i].to(type).sigmoid(); };
          const auto [o, S, M] = general_momentum_delta_rule(
              x[0], x[1], x[2], gate(3), gate(4), gate(5), gate(6), 0.5 * gate(7), 0.3 * gate(8),
              gate(9), x[10].to(type), x[11].to(type), cu, std::nullopt, true);
          return {o, S, M};
        },
        2 * T + K + V);
  }
}

void expect_same_bits(const Function& f, const Tensors& inputs, at::ScalarType type) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const Tensors first = run(f, inputs, type, at::kCUDA);
  for (int again = 0; again < 3; ++again) {
    const Tensors second = run(f, inputs, type, at::kCUDA);
    for (size_t i = 0; i < first.size(); ++i) {
      EXPECT_TRUE(at::equal(first[i], second[i])) << i;
    }
  }
}

TEST(CudaOpsTogether, SameBitsEveryTime) {
  const Tensors inputs = {random({3, 700, 256}), random({256, 1, 4}), random({256}),
                          random({3, 700, 256}), random({512, 256})};
  const at::Tensor targets = (at::arange(2100, at::kLong) % 512).view({3, 700});
  const Function f = [&](const Tensors& x) -> Tensors {
    const at::Tensor y = rms_norm(short_conv(x[0], x[1], std::nullopt), x[2], 1e-6, x[3]);
    return {linear_cross_entropy(swiglu(y, x[3]), x[4], targets.to(x[0].device()))};
  };
  expect_same_bits(f, inputs, at::kBFloat16);
}

TEST(CudaOpsTogether, EmbeddingHasTheSameBitsEveryTime) {
  const at::Tensor ids = (random({1, 8192}).abs() * 1e4).to(at::kLong) % 256;  // few rows, often
  const Function f = [&](const Tensors& x) -> Tensors {
    return {ops::embedding(x[0], ids.to(x[0].device()), -1) * x[1]};
  };
  expect_same_bits(f, {random({256, 384}), random({1, 8192, 384})}, at::kFloat);
}

}  // namespace
}  // namespace mdn::ops
