// linear and short_conv_step on the CPU against plain loops, and their independence of company.
#include "mdn/kernels/linear.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "mdn/kernels/short_conv.h"

namespace mdn::kernels {
namespace {

std::vector<float> random_floats(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> out(static_cast<size_t>(count));
  for (float& x : out) {
    x = normal(random);
  }
  return out;
}

struct Shape {
  int64_t B, in;
  std::vector<int64_t> outs;
};

// Runs all parts; y holds them one after the other.
std::vector<std::vector<float>> run(const Shape& shape, const std::vector<float>& x, bool add) {
  std::vector<std::vector<float>> weights, biases, ys;
  std::vector<LinearPart> parts;
  for (size_t p = 0; p < shape.outs.size(); ++p) {
    const int64_t out = shape.outs[p];
    weights.push_back(random_floats(out * shape.in, 100 + static_cast<unsigned>(p)));
    biases.push_back(random_floats(out, 200 + static_cast<unsigned>(p)));
    ys.emplace_back(static_cast<size_t>(shape.B * out), add ? 0.5f : NAN);
  }
  for (size_t p = 0; p < shape.outs.size(); ++p) {
    // every other part has a bias
    parts.push_back(
        {weights[p].data(), p % 2 ? biases[p].data() : nullptr, shape.outs[p], ys[p].data()});
  }
  cpu::linear(shape.B, shape.in, x.data(), parts, add);
  return ys;
}

const std::vector<Shape> kShapes = {{1, 1, {1}},         {1, 16, {4}},         {1, 100, {7, 3}},
                                    {3, 37, {5, 1, 9}},  {2, 128, {128, 2}},   {5, 257, {63, 4}},
                                    {1, 512, {700, 12}}, {7, 300, {400, 333}}, {16, 64, {1000}}};

TEST(Linear, EqualsPlainLoops) {
  for (const Shape& shape : kShapes) {
    const auto x = random_floats(shape.B * shape.in, 1);
    for (bool add : {false, true}) {
      const auto ys = run(shape, x, add);
      for (size_t p = 0; p < shape.outs.size(); ++p) {
        const int64_t out = shape.outs[p];
        const auto weight = random_floats(out * shape.in, 100 + static_cast<unsigned>(p));
        const auto bias = random_floats(out, 200 + static_cast<unsigned>(p));
        for (int64_t b = 0; b < shape.B; ++b) {
          for (int64_t o = 0; o < out; ++o) {
            double want = (p % 2 ? bias[static_cast<size_t>(o)] : 0.0) + (add ? 0.5 : 0.0);
            double scale = std::abs(want);
            for (int64_t i = 0; i < shape.in; ++i) {
              const double product =
                  static_cast<double>(x[static_cast<size_t>(b * shape.in + i)]) *
                  static_cast<double>(weight[static_cast<size_t>(o * shape.in + i)]);
              want += product;
              scale += std::abs(product);
            }
            // The bound of the header with the narrowest vectors, four lanes: in / 8 sums in a
            // chain, seven single products at the end, then lanes, bias and old value.
            const double roundings = static_cast<double>(shape.in) / 8 + 7 + 8;
            ASSERT_NEAR(ys[p][static_cast<size_t>(b * out + o)], want, roundings * 0x1p-24 * scale)
                << shape.B << " x " << shape.in << " -> " << out;
          }
        }
      }
    }
  }
}

TEST(Linear, ARowDoesNotDependOnItsCompanyOrTheThreads) {
  const int threads = omp_get_max_threads();
  for (const Shape& shape : kShapes) {
    const auto x = random_floats(shape.B * shape.in, 2);
    const auto together = run(shape, x, false);
    for (int count : {1, 2, 3}) {
      omp_set_num_threads(count);
      EXPECT_EQ(run(shape, x, false), together);
      for (int64_t b = 0; b < shape.B; ++b) {
        const std::vector<float> row(x.begin() + b * shape.in, x.begin() + (b + 1) * shape.in);
        const auto alone = run({1, shape.in, shape.outs}, row, false);
        for (size_t p = 0; p < shape.outs.size(); ++p) {
          const auto size = static_cast<size_t>(shape.outs[p]);
          EXPECT_EQ(std::memcmp(alone[p].data(), together[p].data() + static_cast<size_t>(b) * size,
                                size * sizeof(float)),
                    0);
        }
      }
    }
    omp_set_num_threads(threads);
  }
}

TEST(ShortConvStep, EqualsTheWholeConvolution) {
  constexpr int64_t kB = 2, kT = 9;
  for (int64_t C : {1, 13, 64}) {
    for (int64_t W : {1, 2, 4}) {
      const auto x = random_floats(kB * kT * C, 3), weight = random_floats(C * W, 4);
      const ShortConvProblem problem{.B = kB, .T = kT, .C = C, .W = W};
      std::vector<float> want(x.size()), taps(static_cast<size_t>(C * W));
      std::vector<std::byte> workspace(cpu::short_conv_workspace(problem) + 64);
      void* aligned = workspace.data();
      size_t space = workspace.size();
      std::align(64, workspace.size() - 64, aligned, space);
      cpu::short_conv_forward(problem, x.data(), weight.data(), nullptr, want.data(), aligned);

      cpu::short_conv_taps(C, W, weight.data(), taps.data());
      std::vector<float> state(static_cast<size_t>(kB * (W - 1) * C), 0.0f);
      std::vector<float> token(static_cast<size_t>(kB * C)), y(token.size());
      for (int64_t t = 0; t < kT; ++t) {
        for (int64_t b = 0; b < kB; ++b) {
          std::copy_n(x.begin() + (b * kT + t) * C, C, token.begin() + b * C);
        }
        cpu::short_conv_step(kB, C, W, token.data(), taps.data(), state.data(), y.data());
        for (int64_t b = 0; b < kB; ++b) {
          for (int64_t c = 0; c < C; ++c) {
            // the same four products, zeros first: a few roundings of the largest apart at most
            ASSERT_NEAR(y[static_cast<size_t>(b * C + c)],
                        want[static_cast<size_t>((b * kT + t) * C + c)], 16 * 0x1p-24 * 10)
                << C << ' ' << W << ' ' << t;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace mdn::kernels
