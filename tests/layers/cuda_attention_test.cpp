// Attention on a GPU in 16-bit types, where all sequences are one call of flash attention, against
// the layer in float64 on the CPU, where they come one by one. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "mdn/layers/attention.h"
#include "tests/layers/layer_cases.h"

namespace mdn::layers {
namespace {

using Tensors = std::vector<at::Tensor>;

struct Case {
  const char* name;
  std::vector<int64_t> lengths = {};  // of packed sequences; none: three rows of 150 tokens
  std::optional<int64_t> window = std::nullopt;
  int64_t kv_heads = 4;
  int64_t head_dim = 64;
};

constexpr int64_t kHeads = 4, kWidth = 96;
constexpr size_t kValueWeight = 4;  // of the results

Attention layer_of(const Case& c, const Tensors& weights) {
  Attention layer;
  layer.options = {.num_heads = kHeads,
                   .num_kv_heads = c.kv_heads,
                   .head_dim = c.head_dim,
                   .window_size = c.window};
  auto& w = layer.weights;
  w.q_proj = weights[0];
  w.k_proj = weights[1];
  w.v_proj = weights[2];
  w.o_proj = weights[3];
  return layer;
}

/// The output and the gradients of x and the weights. `inputs`: x, then the weights.
Tensors run(const Case& c, const Tensors& inputs, at::ScalarType type, c10::Device device) {
  Tensors leaves;
  for (const at::Tensor& input : inputs) {
    leaves.push_back(input.to(device, type).detach().requires_grad_());
  }
  std::vector<int64_t> bounds = {0};
  for (const int64_t length : c.lengths) {
    bounds.push_back(bounds.back() + length);
  }
  const Attention layer = layer_of(c, {leaves.begin() + 1, leaves.end()});
  const Sequences sequences =
      c.lengths.empty() ? Sequences() : Sequences(at::tensor(bounds, at::kLong));
  const at::Tensor y = layer(leaves[0], sequences, nullptr);
  const at::Tensor d_y =
      (1 + 0.5 * at::cos(at::arange(y.numel(), at::kFloat))).view(y.sizes()).to(at::kBFloat16);
  Tensors results = {y.detach()};
  for (const at::Tensor& d : torch::autograd::grad({y}, leaves, {d_y.to(device, type)})) {
    results.push_back(d);
  }
  return results;
}

Tensors random_inputs(const Case& c) {
  Normal normal(5);
  int64_t T = 0;
  for (const int64_t length : c.lengths) {
    T += length;
  }
  const int64_t q = kHeads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const double scale = 1 / std::sqrt(double(kWidth));
  return {c.lengths.empty() ? normal({3, 150, kWidth}) : normal({1, T, kWidth}),
          normal({q, kWidth}, scale), normal({kv, kWidth}, scale), normal({kv, kWidth}, scale),
          normal({kWidth, q}, 1 / std::sqrt(double(q)))};
}

class CudaAttention : public testing::TestWithParam<Case> {};

// Off by a rounding of the type for every value of it on the way: 8 to the output (q and k
// projected and rotated, v, the probabilities, their sum, the output), as many again to a gradient.
// 2 covers cancellation, as in tests/ops/cuda_ops_test.cpp. A softmax over one key has no gradient
// but rounding, of what v's gradient is made of.
TEST_P(CudaAttention, AgreesWithFloat64) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  for (const bool in_one_order : {false, true}) {
    set_deterministic_attention(in_one_order);
    for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
      const double u = type == at::kHalf ? 0x1p-11 : 0x1p-8;
      Tensors inputs;
      for (const at::Tensor& x : random_inputs(GetParam())) {
        inputs.push_back(x.to(type));
      }
      const Tensors want = run(GetParam(), inputs, at::kDouble, at::kCPU);
      const Tensors got = run(GetParam(), inputs, type, at::kCUDA);
      for (size_t i = 0; i < want.size(); ++i) {
        const at::Tensor error = (got[i].to(at::kCPU, at::kDouble) - want[i]).norm();
        const at::Tensor norm = at::maximum(want[i].norm(), u * want[kValueWeight].norm());
        EXPECT_LE(error.item<double>(), 2 * (i == 0 ? 8 : 16) * u * norm.item<double>())
            << c10::toString(type) << ", result " << i << (in_one_order ? ", in one order" : "");
      }
    }
    set_deterministic_attention(false);
  }
}

const Case kCases[] = {
    {.name = "packed", .lengths = {70, 1, 200, 129, 3}},
    {.name = "empty_ones", .lengths = {0, 70, 0, 0, 64, 0}},
    {.name = "a_long_one", .lengths = {5, 1500}},
    {.name = "one_token_each", .lengths = {1, 1, 1, 1, 1}},
    {.name = "one_token_each_shared", .lengths = {1, 1, 1}, .kv_heads = 1},
    {.name = "shared_keys", .lengths = {70, 1, 200}, .kv_heads = 2},
    {.name = "one_key_head", .lengths = {70, 1, 200}, .kv_heads = 1},
    {.name = "window", .lengths = {70, 1, 200, 33}, .window = 32},
    {.name = "window_of_one", .lengths = {70, 1, 20}, .window = 1},
    {.name = "window_beyond", .lengths = {70, 1, 20}, .window = 500},
    {.name = "window_shared_keys", .lengths = {70, 300}, .window = 65, .kv_heads = 2},
    {.name = "window_of_rows", .window = 40, .kv_heads = 2},
    {.name = "rows"},
    {.name = "narrow_heads", .lengths = {70, 40}, .head_dim = 8},
    {.name = "wide_heads", .lengths = {70, 140}, .head_dim = 256},
    {.name = "heads_that_flash_does_not_take", .lengths = {70, 14}, .head_dim = 12},
};

INSTANTIATE_TEST_SUITE_P(Cases, CudaAttention, testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

// Nothing, even a NaN, gets across a boundary. (Within a sequence it reaches earlier tokens too, at
// which it has a probability of 0.)
TEST(CudaAttentionRules, ANanStaysInItsSequence) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const Case c{.name = "", .lengths = {20, 30, 40}};
  Tensors inputs = random_inputs(c);
  inputs[0].narrow(1, 25, 1).fill_(NAN);
  const at::Tensor y = run(c, inputs, at::kBFloat16, at::kCUDA)[0];
  EXPECT_TRUE(at::isfinite(y.narrow(1, 0, 20)).all().item<bool>());
  EXPECT_TRUE(at::isnan(y.narrow(1, 20, 30)).any().item<bool>());
  EXPECT_TRUE(at::isfinite(y.narrow(1, 50, 40)).all().item<bool>());
}

}  // namespace
}  // namespace mdn::layers
