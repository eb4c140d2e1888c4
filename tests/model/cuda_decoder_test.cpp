// The decoder on a GPU, with its fused blocks, against the same decoder in float64 on the CPU,
// where every block is ATen's operations: loss and every gradient. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "mdn/layers/attention.h"
#include "mdn/model/decoder.h"
#include "mdn/model/verify.h"

namespace mdn::model {
namespace {

struct Results {
  double loss = 0;
  std::vector<at::Tensor> gradients;
};

Results run(const Config& config, at::ScalarType parameters_type, at::ScalarType compute_type,
            c10::Device device, const at::Tensor& ids, const layers::Sequences& sequences) {
  Parameters parameters = Parameters::initialise(config, 3, parameters_type, device);
  parameters.set_requires_grad(true);
  const Decoder decoder(config, std::move(parameters), compute_type);
  const int64_t T = ids.size(1) - 1;
  const at::Tensor loss =
      decoder.loss(ids.narrow(1, 0, T).to(device), ids.narrow(1, 1, T).to(device), sequences);
  std::vector<at::Tensor> leaves;
  for (const Parameter& p : decoder.parameters().entries()) {
    leaves.push_back(p.value);
  }
  return {loss.item<double>(), torch::autograd::grad({loss}, leaves)};
}

void compare(const Config& config, const at::Tensor& ids, const layers::Sequences& sequences,
             at::ScalarType compute_type) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const Results want = run(config, at::kDouble, at::kDouble, at::kCPU, ids, sequences);
  const Results got = run(config, at::kFloat, compute_type, at::kCUDA, ids, sequences);
  // The tolerances of the golden models, which are as deep and as wide.
  const VerifyTolerances allowed = default_tolerances(compute_type);
  EXPECT_LE(std::abs(got.loss - want.loss), allowed.logits * want.loss);
  const auto table = weight_table(config);
  for (size_t i = 0; i < table.size(); ++i) {
    const at::Tensor difference = got.gradients[i].to(at::kCPU, at::kDouble) - want.gradients[i];
    EXPECT_LE(difference.norm().item<double>(),
              (table[i].shape.size() > 1 ? allowed.gradients : allowed.vectors) *
                  want.gradients[i].norm().item<double>())
        << table[i].name;
  }
}

class CudaDecoder : public testing::TestWithParam<std::tuple<const char*, at::ScalarType>> {};

TEST_P(CudaDecoder, RowsAgreeWithFloat64) {
  const auto [name, type] = GetParam();
  const Config config = read_config(std::string(MDN_TEST_DATA "/goldens/") + name);
  compare(config, (at::arange(2 * 131, at::kLong) * 37 % 101).view({2, 131}), {}, type);
}

TEST_P(CudaDecoder, PackedSequencesAgreeWithFloat64) {
  const auto [name, type] = GetParam();
  const Config config = read_config(std::string(MDN_TEST_DATA "/goldens/") + name);
  const at::Tensor cu = at::tensor(std::vector<int64_t>{0, 1, 3, 70, 71, 200}, at::kLong);
  compare(config, (at::arange(201, at::kLong) * 37 % 101).view({1, 201}), layers::Sequences(cu),
          type);
}

INSTANTIATE_TEST_SUITE_P(Families, CudaDecoder,
                         testing::Combine(testing::Values("mdn", "mdn_plain", "mdn_lora",
                                                          "mdn_hybrid", "gdn", "comba", "kda",
                                                          "mamba2", "transformer"),
                                          testing::Values(at::kFloat, at::kBFloat16)),
                         [](const testing::TestParamInfo<CudaDecoder::ParamType>& test) {
                           return std::string(std::get<0>(test.param)) + "_" +
                                  c10::toString(std::get<1>(test.param));
                         });

void expect_same_bits(const Config& config, at::ScalarType type) {
  const at::Tensor ids = (at::arange(4 * 257, at::kLong) * 37 % 101).view({4, 257});
  const Results first = run(config, at::kFloat, type, at::kCUDA, ids, {});
  for (int again = 0; again < 3; ++again) {
    const Results second = run(config, at::kFloat, type, at::kCUDA, ids, {});
    EXPECT_EQ(first.loss, second.loss);
    for (size_t i = 0; i < first.gradients.size(); ++i) {
      EXPECT_TRUE(at::equal(first.gradients[i], second.gradients[i])) << i;
    }
  }
}

TEST(CudaDecoder, SameBitsEveryTime) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  for (const char* name : {"mdn", "gdn", "comba", "kda", "mamba2"}) {
    SCOPED_TRACE(name);
    expect_same_bits(read_config(std::string(MDN_TEST_DATA "/goldens/") + name), at::kBFloat16);
  }
}

// Loss and weights after three steps of gradient descent, twice.
void expect_same_training(const Config& config, at::ScalarType type) {
  const at::Tensor ids = (at::arange(4 * 1025, at::kLong) * 37 % 101).view({4, 1025}).to(at::kCUDA);
  std::vector<at::Tensor> weights[2];
  for (auto& trained : weights) {
    Parameters parameters = Parameters::initialise(config, 3, at::kFloat, at::kCUDA);
    parameters.set_requires_grad(true);
    const Decoder decoder(config, std::move(parameters), type);
    for (const Parameter& p : decoder.parameters().entries()) {
      trained.push_back(p.value);
    }
    for (int step = 0; step < 3; ++step) {
      const auto d = torch::autograd::grad(
          {decoder.loss(ids.narrow(1, 0, 1024), ids.narrow(1, 1, 1024))}, trained);
      const at::NoGradGuard no_grad;
      for (size_t i = 0; i < d.size(); ++i) {
        trained[i].sub_(d[i], 0.1);
      }
    }
  }
  for (size_t i = 0; i < weights[0].size(); ++i) {
    EXPECT_TRUE(at::equal(weights[0][i], weights[1][i])) << i;
  }
}

TEST(CudaDecoder, AttentionHasTheSameBitsWhenAsked) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  layers::set_deterministic_attention(true);
  for (const char* name : {"mdn_hybrid", "transformer"}) {
    SCOPED_TRACE(name);
    expect_same_training(read_config(std::string(MDN_TEST_DATA "/goldens/") + name), at::kBFloat16);
  }
  Config windowed = read_config(MDN_TEST_DATA "/goldens/mdn_hybrid");
  for (auto& [layer, options] : windowed.attention) {
    options.window_size = 100;
  }
  SCOPED_TRACE("a window");
  expect_same_training(windowed, at::kBFloat16);
  layers::set_deterministic_attention(false);
}

TEST(CudaDecoder, DeterministicAttentionAgreesWithFloat64) {
  layers::set_deterministic_attention(true);
  const Config config = read_config(MDN_TEST_DATA "/goldens/mdn_hybrid");
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    compare(config, (at::arange(2 * 131, at::kLong) * 37 % 101).view({2, 131}), {}, type);
  }
  layers::set_deterministic_attention(false);
}

}  // namespace
}  // namespace mdn::model
