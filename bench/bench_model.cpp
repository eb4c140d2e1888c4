// Times a decoder on this machine: forward and backward pass, prefill, and single-token decode as
// `mdn generate` does it (generate/stepper.h) and by the decoder itself.
//
//   bench_model [CONFIG] [ROWS] [LENGTH]      default: the demo's model, 16 rows of 256 tokens
//
// Medians of repeated runs after a warm-up. The floor of the training step is its matrix products,
// 6 FLOP a weight and token (embeddings excluded), at the float32 rate that ATen's own product of
// 1024 x 1024 reaches in the same run.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>

#include "mdn/core/threads.h"
#include "mdn/generate/stepper.h"
#include "mdn/model/decoder.h"

namespace {

double median_seconds(int repeats, const std::function<void()>& run) {
  run();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[static_cast<size_t>(repeats / 2)];
}

}  // namespace

int main(int argc, char** argv) {
  using namespace mdn;
  const std::string path = argc > 1 ? argv[1] : "configs/demo/model.json";
  const int64_t rows = argc > 2 ? std::atoll(argv[2]) : 16;
  const int64_t length = argc > 3 ? std::atoll(argv[3]) : 256;
  const model::Config config = model::read_config(path);
  model::Decoder decoder(config, model::Parameters::initialise(config, 1));
  const int64_t embedding = config.vocab_size * config.hidden_size;
  const int64_t weights =
      decoder.parameters().count() - (config.tie_word_embeddings ? 0 : embedding);

  const at::Tensor a = at::randn({1024, 1024}), b = at::randn({1024, 1024});
  const double gemm = median_seconds(20, [&] { at::mm(a, b); });
  const double peak = 2.0 * 1024 * 1024 * 1024 / gemm;

  const at::Tensor ids = at::randint(config.vocab_size, {rows, length}, at::kLong);
  decoder.parameters().set_requires_grad(true);
  std::vector<at::Tensor> leaves;
  for (const auto& p : decoder.parameters().entries()) {
    leaves.push_back(p.value);
  }
  const double step =
      median_seconds(5, [&] { torch::autograd::grad({decoder.loss(ids, ids)}, leaves); });
  decoder.parameters().set_requires_grad(false);

  const at::NoGradGuard no_grad;
  const double prefill = median_seconds(5, [&] { decoder.hidden(ids); });
  constexpr int kTokens = 32;
  const auto decode = [&](int64_t batch) {
    model::DecoderState state = decoder.new_state();
    const at::Tensor token = ids.narrow(1, 0, 1).narrow(0, 0, 1).repeat({batch, 1});
    decoder.hidden(token, {}, &state);
    return median_seconds(10,
                          [&] {
                            for (int i = 0; i < kTokens; ++i) {
                              decoder.logits(decoder.hidden(token, {}, &state));
                            }
                          }) /
           kTokens;
  };
  generate::Stepper stepper(decoder);
  const auto step_decode = [&](int64_t batch) {
    model::DecoderState state = decoder.new_state();
    const std::vector<int64_t> token(static_cast<size_t>(batch), ids[0][0].item<int64_t>());
    decoder.hidden(ids.narrow(1, 0, 1).narrow(0, 0, 1).repeat({batch, 1}), {}, &state);
    return median_seconds(10,
                          [&] {
                            for (int i = 0; i < kTokens; ++i) {
                              stepper.step(token, state);
                            }
                          }) /
           kTokens;
  };

  const double tokens = static_cast<double>(rows * length);
  const double flop = 6.0 * static_cast<double>(weights) * tokens;
  fmt::print("| {}, {} parameters, {} threads | time | rate |\n|---|---|---|\n", path,
             decoder.parameters().count(), num_threads());
  fmt::print("| float32 matrix product 1024³ | {:.2f} ms | {:.0f} GFLOP/s |\n", gemm * 1e3,
             peak / 1e9);
  fmt::print(
      "| forward + backward, {} x {} | {:.1f} ms | {:.0f} tokens/s, {:.0f}% of the product's rate "
      "|\n",
      rows, length, step * 1e3, tokens / step, 100 * flop / step / peak);
  fmt::print("| prefill, {} x {} | {:.1f} ms | {:.0f} tokens/s |\n", rows, length, prefill * 1e3,
             tokens / prefill);
  for (const int64_t batch : {1, 16}) {
    const double by_stepper = step_decode(batch), by_decoder = decode(batch);
    const auto rate = [&](double seconds) { return static_cast<double>(batch) / seconds; };
    fmt::print(
        "| decode, {} sequences, stepper of `mdn generate` | {:.3f} ms | {:.0f} tokens/s |\n",
        batch, by_stepper * 1e3, rate(by_stepper));
    fmt::print("| decode, {} sequences, Decoder::hidden | {:.3f} ms | {:.0f} tokens/s |\n", batch,
               by_decoder * 1e3, rate(by_decoder));
  }
}
