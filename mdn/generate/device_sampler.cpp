#include "mdn/generate/device_sampler.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mdn::generate {

at::Tensor draw(const at::Tensor& logits, const SamplerOptions& options,
                const at::Tensor& uniform) {
  if (options.temperature == 0) {
    return logits.argmax(1, true);  // the first of equals
  }
  const int64_t vocab = logits.size(1);
  const at::Tensor x = logits.to(at::kDouble);
  // exp((x - largest) / t): the largest weight is 1
  at::Tensor weight = ((x - x.amax(1, true)) / options.temperature).exp();
  if (options.top_k > 0 && options.top_k < vocab) {
    const at::Tensor kth = std::get<0>(x.topk(options.top_k, 1)).narrow(1, options.top_k - 1, 1);
    weight = weight.masked_fill(x < kth, 0);
  }
  if (options.top_p < 1) {
    // Likelier first, of equals the lower id; a token stays while those before it are not enough.
    const auto [ranked, order] = weight.sort(/*stable=*/true, 1, /*descending=*/true);
    const at::Tensor sums = ranked.cumsum(1);
    const at::Tensor before = at::constant_pad_nd(sums.narrow(1, 0, vocab - 1), {1, 0});
    const at::Tensor enough = options.top_p * sums.narrow(1, vocab - 1, 1);
    weight = at::zeros_like(weight).scatter(1, order, ranked.masked_fill(before >= enough, 0));
  }
  if (options.min_p > 0) {
    weight = weight.masked_fill(weight < options.min_p, 0);
  }
  // The first token whose sum exceeds u times all of it; the last one with any weight, where
  // rounding leaves none.
  const at::Tensor sums = weight.cumsum(1);
  const at::Tensor u = uniform.unsqueeze(1) * sums.narrow(1, vocab - 1, 1);
  const at::Tensor last = vocab - 1 - (weight > 0).flip(1).to(at::kByte).argmax(1, true);
  return at::minimum(at::searchsorted(sums, u, /*out_int32=*/false, /*right=*/true), last);
}

}  // namespace mdn::generate
