// Generation as `mdn generate` does it, with random weights: tokens a second by batch size, against
// the time in which the weights and states that a token needs can be copied.
//
//   bench_generate [CONFIG] [DEVICE] [DTYPE] [TOKENS] [TEMPERATURE] [BATCH...]
//
// default: configs/mdn_400m.json cuda bfloat16 256 0 1 16 64. Every sequence reads a prompt of 512
// random tokens and makes TOKENS more. The first of them is left out of the figures: it is made
// alone, for each sequence before it joins the others.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <functional>

#include "bench/wait_for.h"
#include "mdn/generate/generator.h"
#include "mdn/model/decoder.h"

namespace mdn::bench {
namespace {

constexpr int64_t kPrompt = 512;
constexpr int64_t kCopyBytes = int64_t{1} << 30;

/// Bytes read and written a second by a copy.
double measure_copy(c10::Device device) {
  const at::Tensor from = at::ones({kCopyBytes}, at::TensorOptions(at::kByte).device(device));
  at::Tensor to = at::empty_like(from);
  constexpr int kRepeats = 20;
  to.copy_(from);
  wait_for(device);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRepeats; ++i) {
    to.copy_(from);
  }
  wait_for(device);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return 2.0 * kRepeats * kCopyBytes / seconds;
}

/// What a step reads of the weights: all but the rows of the embeddings that no token asks for.
int64_t weight_bytes(const model::Decoder& decoder) {
  int64_t bytes = 0;
  for (const model::Parameter& p : decoder.parameters().entries()) {
    bytes += static_cast<int64_t>(p.value.nbytes());
  }
  const at::Tensor& embeddings = decoder.weights().embeddings;
  return decoder.config().tie_word_embeddings ? bytes
                                              : bytes - static_cast<int64_t>(embeddings.nbytes());
}

/// Of one sequence's state after its prompt: what a step reads and writes, and the keys and values
/// that it only reads.
struct StateBytes {
  double updated = 0, read = 0;
};

StateBytes state_bytes(const model::Decoder& decoder, c10::Device device) {
  const c10::InferenceMode inference;
  model::DecoderState state = decoder.new_state();
  decoder.hidden(at::zeros({1, kPrompt}, at::TensorOptions(at::kLong).device(device)), {}, &state);
  StateBytes bytes;
  for (layers::MixerState& layer : state.layers) {
    const bool attention = std::holds_alternative<layers::AttentionState>(layer);
    for (const auto& [name, tensor] : layers::state_fields(layer)) {
      if (tensor->defined()) {
        (attention ? bytes.read : bytes.updated) += static_cast<double>(tensor->nbytes());
      }
    }
  }
  return bytes;
}

std::vector<generate::Request> requests_of(const model::Config& config, int64_t batch,
                                           int64_t tokens, double temperature) {
  std::vector<generate::Request> requests;
  for (int64_t b = 0; b < batch; ++b) {
    const at::Tensor ids = at::randint(config.vocab_size, {kPrompt}, at::kLong);
    generate::Request request;
    request.prompt.assign(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + kPrompt);
    request.sampler.temperature = temperature;
    request.random = generate::RandomStream{.seed = 1, .stream = static_cast<uint64_t>(b)};
    request.max_tokens = tokens;
    requests.push_back(std::move(request));
  }
  return requests;
}

void run(int argc, char** argv) {
  const std::string path = argc > 1 ? argv[1] : "configs/mdn_400m.json";
  const c10::Device device(argc > 2 ? argv[2] : "cuda");
  const std::string dtype = argc > 3 ? argv[3] : "bfloat16";
  const int64_t tokens = argc > 4 ? std::atoll(argv[4]) : 256;
  const double temperature = argc > 5 ? std::atof(argv[5]) : 0;
  std::vector<int64_t> batches;
  for (int i = 6; i < argc; ++i) {
    batches.push_back(std::atoll(argv[i]));
  }
  if (batches.empty()) {
    batches = {1, 16, 64};
  }
  const model::Config config = model::read_config(path);
  const at::ScalarType type = dtype == "bfloat16"  ? at::kBFloat16
                              : dtype == "float16" ? at::kHalf
                                                   : at::kFloat;
  const model::Decoder decoder(config, model::Parameters::initialise(config, 1, type, device));
  const double copy = measure_copy(device);
  const auto weights = static_cast<double>(weight_bytes(decoder));
  const StateBytes state = state_bytes(decoder, device);
  fmt::print("{}, {} on {}, temperature {}, prompts of {}, {} tokens each; copies at {:.2f} TB/s\n",
             path, dtype, device.str(), temperature, kPrompt, tokens, copy * 1e-12);
  fmt::print(
      "a step reads {:.1f} MB of weights, and of a sequence reads and writes {:.1f} MB of states "
      "and "
      "reads {:.1f} MB of keys and values\n\n",
      weights * 1e-6, state.updated * 1e-6, state.read * 1e-6);
  fmt::print(
      "| batch | prefill tokens/s | first token ms | step ms | tokens/s | floor ms | of the "
      "floor's "
      "speed |\n|---|---|---|---|---|---|---|\n");
  for (const int64_t batch : batches) {
    // What a step takes: the time of all tokens less that of the first ones, made alone.
    generate::Generator generator(decoder, {.batch = batch});
    generate::Timing timing[2];
    for (const int part : {0, 1, 0, 1}) {  // the first two warm up
      const generate::Timing before = generator.timing();
      generator.run(requests_of(config, batch, part == 0 ? 1 : tokens, temperature));
      const generate::Timing& after = generator.timing();
      timing[part] = {.prefill_tokens = after.prefill_tokens - before.prefill_tokens,
                      .prefill_seconds = after.prefill_seconds - before.prefill_seconds,
                      .decode_tokens = after.decode_tokens - before.decode_tokens,
                      .decode_seconds = after.decode_seconds - before.decode_seconds};
    }
    const double first = timing[0].decode_seconds;
    const double step =
        (timing[1].decode_seconds - first) / static_cast<double>(std::max<int64_t>(tokens - 1, 1));
    const double floor =
        (weights + (2 * state.updated + state.read) * static_cast<double>(batch)) / copy;
    fmt::print("| {} | {:.0f} | {:.2f} | {:.3f} | {:.0f} | {:.3f} | {:.0f}% |\n", batch,
               static_cast<double>(timing[1].prefill_tokens) / timing[1].prefill_seconds,
               first * 1e3 / static_cast<double>(batch), step * 1e3,
               static_cast<double>(batch) / step, floor * 1e3, 100 * floor / step);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace mdn::bench

int main(int argc, char** argv) {
  try {
    mdn::bench::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_generate: {}\n", error.what());
    return 1;
  }
}
