// The decoder on a GPU, with its fused blocks, against the same decoder in float64 on the CPU,
// where every block is ATen's operations: loss and every gradient. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "mdn/io/json.h"
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

// `vectors`: their gradients too.
void compare(const Config& config, const at::Tensor& ids, const layers::Sequences& sequences,
             at::ScalarType compute_type, bool vectors = true) {
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
    if (!vectors && table[i].shape.size() == 1) {
      continue;
    }
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

// What options change in the blocks that a GPU runs fused or recomputed.
struct Variant {
  const char* name;
  const char* golden;
  const char* keys;  // in place of those of the golden model's config
};

const Variant kVariants[] = {
    {"no_correction", "mdn", R"({"use_output_correction": false})"},
    {"no_convolution", "mdn", R"({"use_short_conv": false})"},
    {"no_output_gate", "mdn", R"({"use_gate": false})"},
    {"no_clamp", "mdn", R"({"min_log_mu": null})"},
    {"predict_from_k", "mdn", R"({"use_p_times_alpha": false})"},
    {"grouped_values", "mdn", R"({"num_v_heads": 4})"},
    {"tied_embeddings", "mdn", R"({"tie_word_embeddings": true, "pad_token_id": 3})"},
    {"no_momentum", "mdn", R"({"use_momentum": false})"},
    {"no_alpha_cap", "mdn", R"({"use_alpha_cap": false})"},
    {"no_caps", "mdn", R"({"use_alpha_cap": false, "use_beta_cap": false})"},
    {"nesterov", "mdn", R"({"momentum_kind": "nesterov"})"},
    {"quasi_hyperbolic", "mdn", R"({"momentum_kind": "quasi_hyperbolic"})"},
    {"gdn_grouped_values", "gdn", R"({"num_v_heads": 4})"},
    {"gdn_negative_eigenvalues", "gdn", R"({"allow_neg_eigval": true, "use_gate": false})"},
    {"gdn_no_convolution", "gdn", R"({"use_short_conv": false})"},
    {"comba_bare", "comba", R"({"use_output_gate": false, "use_short_conv": false})"},
    {"kda_grouped_values", "kda", R"({"num_v_heads": 4})"},
    {"kda_negative_eigenvalues", "kda", R"({"allow_neg_eigval": true})"},
    {"kda_no_convolution", "kda", R"({"use_short_conv": false})"},
    {"mamba2_groups", "mamba2", R"({"n_groups": 2})"},
    {"mamba2_options", "mamba2", R"({"rmsnorm": false, "use_bias": true, "use_conv_bias": false})"},
    {"mamba2_norm_first", "mamba2", R"({"norm_before_gate": true, "residual_in_fp32": false})"},
    {"transformer_shared_keys", "transformer", R"({"num_kv_heads": 1, "window_size": 20})"},
    {"transformer_norm", "transformer", R"({"qk_norm": true, "qkv_bias": true})"},
};

class CudaDecoderVariant : public testing::TestWithParam<Variant> {};

TEST_P(CudaDecoderVariant, AgreesWithFloat64) {
  const Variant& variant = GetParam();
  Json json = read_json(fmt::format(MDN_TEST_DATA "/goldens/{}/config.json", variant.golden));
  json.update(parse_json(variant.keys, variant.name));
  const Config config = parse_config(json.dump(), variant.name);
  // A vector's gradient is a sum over all tokens, which in 16 bits may cancel down to its rounding:
  // `mdn verify` measures for each model how far, the bounds here are those of the golden models.
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    SCOPED_TRACE(c10::toString(type));
    compare(config, (at::arange(2 * 131, at::kLong) * 37 % 101).view({2, 131}), {}, type,
            type == at::kFloat);
  }
}

INSTANTIATE_TEST_SUITE_P(Options, CudaDecoderVariant, testing::ValuesIn(kVariants),
                         [](const auto& test) { return test.param.name; });

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
  const at::Tensor ids = (at::arange(8 * 1025, at::kLong) * 37 % 101).view({8, 1025}).to(at::kCUDA);
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
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      SCOPED_TRACE(fmt::format("{} {}", name, c10::toString(type)));
      expect_same_training(read_config(std::string(MDN_TEST_DATA "/goldens/") + name), type);
    }
  }
  Config windowed = read_config(MDN_TEST_DATA "/goldens/mdn_hybrid"), tied = windowed;
  for (auto& [layer, options] : windowed.attention) {
    options.window_size = 100;
  }
  tied.tie_word_embeddings = true;
  {
    SCOPED_TRACE("a window");
    expect_same_training(windowed, at::kBFloat16);
  }
  SCOPED_TRACE("tied embeddings");
  expect_same_training(tied, at::kBFloat16);
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
