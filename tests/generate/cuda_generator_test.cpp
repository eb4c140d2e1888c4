// Generation on a GPU against the same model on the CPU: logits of single tokens against float64,
// greedy passages of batches that sequences join and leave, graphs against the calls that they
// captured. Skipped where there is no GPU.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "mdn/generate/attention_cache.h"
#include "mdn/generate/cuda_stepper.h"
#include "mdn/generate/generator.h"
#include "mdn/model/verify.h"

namespace mdn::generate {
namespace {

model::Decoder decoder_of(const std::string& name, at::ScalarType type, c10::Device device) {
  const model::Config config = model::read_config(MDN_TEST_DATA "/goldens/" + name);
  return model::Decoder(config, model::Parameters::initialise(config, 5, type, device));
}

std::vector<int64_t> ids_of(int64_t count, int64_t salt = 0) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back((i * 37 + salt * 11 + 3) % 97);
  }
  return ids;
}

class CudaModels : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) {
      GTEST_SKIP() << "no GPU";
    }
  }
};

TEST_P(CudaModels, AreStepsOfKernels) {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    EXPECT_TRUE(DeviceStep(decoder_of(GetParam(), type, at::kCUDA)).fused());
  }
}

TEST(CudaKimi, ABoundedDecayIsLeftToTheDecoder) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  model::Config config = model::read_config(MDN_TEST_DATA "/goldens/kda");
  config.kimi_delta_attention.lower_bound = -5;
  const model::Decoder bounded(config,
                               model::Parameters::initialise(config, 5, at::kBFloat16, at::kCUDA));
  EXPECT_FALSE(DeviceStep(bounded).fused());
}

TEST_P(CudaModels, LogitsOfStepsAgreeWithFloat64) {
  constexpr int64_t kSteps = 9;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const model::Decoder cpu = decoder_of(GetParam(), at::kDouble, at::kCPU);
    const model::Decoder gpu = decoder_of(GetParam(), type, at::kCUDA);
    const double allowed = model::default_tolerances(type).logits;
    const c10::InferenceMode inference;
    CudaStepper stepper(gpu);
    for (const int64_t B : {1, 3, 20}) {
      SCOPED_TRACE(fmt::format("{} batch {}", c10::toString(type), B));
      at::Tensor prompt = at::empty({B, 21}, at::kLong);
      for (int64_t b = 0; b < B; ++b) {
        prompt.select(0, b).copy_(at::tensor(ids_of(21, b), at::kLong));
      }
      model::DecoderState want_state = cpu.new_state(), got_state = gpu.new_state();
      cpu.hidden(prompt, {}, &want_state);
      gpu.hidden(prompt.to(at::kCUDA), {}, &got_state);
      to_caches(gpu, got_state, 64);
      for (int64_t t = 0; t < kSteps; ++t) {
        const std::vector<int64_t> ids = ids_of(B, 7 + t);
        const at::Tensor want =
            cpu.logits(cpu.hidden(at::tensor(ids, at::kLong).view({B, 1}), {}, &want_state))
                .squeeze(1);
        const at::Tensor got =
            stepper.step(ids, std::vector(ids.size(), got_state.position), got_state, nullptr)
                .logits;
        EXPECT_LE((got.to(at::kDouble) - want).norm().item<double>(),
                  allowed * want.norm().item<double>())
            << "step " << t;
        EXPECT_EQ(got_state.position, want_state.position);
      }
    }
  }
}

// The same kernels at the same sizes: the same bits, and a state that moved into the pool is the
// state that it was.
TEST_P(CudaModels, GraphsEqualTheCallsThatTheyCaptured) {
  const model::Decoder gpu = decoder_of(GetParam(), at::kBFloat16, at::kCUDA);
  const c10::InferenceMode inference;
  CudaStepper stepper(gpu);
  Context alone = new_context(gpu);
  read(gpu, alone, ids_of(12));
  to_caches(gpu, alone.state, 64);
  Context captured = clone(alone);
  for (const int64_t id : ids_of(8, 2)) {
    const int64_t position = alone.state.position;
    const at::Tensor want = stepper.step_alone(id, position, alone.state, nullptr).logits.clone();
    EXPECT_TRUE(at::equal(stepper.step({id}, {position}, captured.state, nullptr).logits, want));
  }
}

std::vector<Request> requests_of(double temperature, double penalty = 1) {
  std::vector<Request> requests;
  for (int64_t i = 0; i < 21; ++i) {
    Request request;
    request.prompt = ids_of(1 + (i % 4) * 9, i);
    request.max_tokens = 3 + (i * 5) % 11;
    request.sampler.temperature = temperature;
    if (i % 7 == 3) {  // one way of drawing for all, or the host draws
      request.sampler.repetition_penalty = penalty;
    }
    request.random = RandomStream{.seed = 3, .stream = static_cast<uint64_t>(i)};
    requests.push_back(std::move(request));
  }
  return requests;
}

// float32 on both sides: the rounding of products does not tip a largest logit here, nor a draw.
TEST_P(CudaModels, PassagesEqualTheCpus) {
  const model::Decoder cpu = decoder_of(GetParam(), at::kFloat, at::kCPU);
  const model::Decoder gpu = decoder_of(GetParam(), at::kFloat, at::kCUDA);
  for (const auto& [temperature, penalty] :
       std::vector<std::pair<double, double>>{{0, 1}, {0.8, 1}, {0.8, 1.2}}) {
    const std::vector<Request> requests = requests_of(temperature, penalty);
    const auto want = Generator(cpu).run(requests);
    for (const int64_t batch : {1, 5, 32}) {
      Generator generator(gpu, {.batch = batch});
      for (int repeat = 0; repeat < 2; ++repeat) {  // captured by the first
        const auto got = generator.run(requests);
        for (size_t i = 0; i < requests.size(); ++i) {
          EXPECT_EQ(got[i].tokens, want[i].tokens)
              << "temperature " << temperature << ", penalty " << penalty << ", batch " << batch
              << ", prompt " << i;
        }
      }
    }
  }
}

TEST_P(CudaModels, AKeptContextContinues) {
  const model::Decoder gpu = decoder_of(GetParam(), at::kFloat, at::kCUDA);
  Generator generator(gpu, {.keep_contexts = true});
  Request request;
  request.prompt = ids_of(30);
  request.sampler.temperature = 0;
  request.max_tokens = 20;
  const auto want = generator.run({request}).front().tokens;
  request.max_tokens = 8;
  const Passage first = generator.run({request}).front();
  Request rest = request;
  rest.prompt.clear();
  rest.start = &first.context;
  rest.max_tokens = 12;
  for (int repeat = 0; repeat < 2; ++repeat) {  // a start is copied, not used up
    std::vector<int64_t> got = first.tokens;
    const Passage more = generator.run({rest}).front();
    got.insert(got.end(), more.tokens.begin(), more.tokens.end());
    EXPECT_EQ(got, want);
  }
}

INSTANTIATE_TEST_SUITE_P(CudaGenerator, CudaModels,
                         testing::Values("mdn", "mdn_plain", "mdn_lora", "mdn_hybrid", "gdn",
                                         "comba", "kda", "mamba2", "transformer"));

TEST(CudaGenerator, ANumberThatIsNoneIsNoticed) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  const model::Decoder gpu = decoder_of("mdn", at::kFloat, at::kCUDA);
  gpu.weights().norm.fill_(std::numeric_limits<double>::quiet_NaN());
  Request request;
  request.prompt = ids_of(5);
  for (const double temperature : {0.0, 1.0}) {
    request.sampler.temperature = temperature;
    EXPECT_THROW(Generator(gpu).run({request}), Error) << temperature;
  }
}

// Grouped heads with a window, norms and biases; spans and windows that begin within a block;
// caches that grow on the way.
TEST(CudaGenerator, AttentionWithAllOptions) {
  if (!at::hasCUDA()) {
    GTEST_SKIP() << "no GPU";
  }
  for (const int64_t window : {0, 3, 200}) {
    SCOPED_TRACE(fmt::format("window {}", window));
    model::Config config = model::read_config(MDN_TEST_DATA "/goldens/transformer");
    config.hidden_size = 64;
    for (auto& [layer, options] : config.attention) {
      options.num_heads = 4;
      options.num_kv_heads = 2;
      options.head_dim = 16;
      options.qkv_bias = options.qk_norm = true;
      options.window_size = window > 0 ? std::optional(window) : std::nullopt;
    }
    const auto decoder_on = [&](c10::Device device) {
      return model::Decoder(config, model::Parameters::initialise(config, 5, at::kFloat, device));
    };
    const model::Decoder cpu = decoder_on(at::kCPU), gpu = decoder_on(at::kCUDA);
    std::vector<Request> requests;
    for (const int64_t length : {1, 2, 130, 300, 1015}) {
      Request request;
      request.prompt = ids_of(length, length);
      request.sampler.temperature = 0;
      request.max_tokens = 20;
      requests.push_back(std::move(request));
    }
    const auto want = Generator(cpu).run(requests);
    const auto got = Generator(gpu).run(requests);
    for (size_t i = 0; i < want.size(); ++i) {
      EXPECT_EQ(got[i].tokens, want[i].tokens) << i;
    }
  }
}

}  // namespace
}  // namespace mdn::generate
