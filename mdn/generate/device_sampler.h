// From logits to tokens on the device that the logits lie on.
#pragma once

#include <ATen/core/Tensor.h>

#include "mdn/generate/sampler.h"

namespace mdn::generate {

/// What Sampler::next draws from each row of logits [B, vocab], ids [B, 1] int64, with the numbers
/// uniform [B] float64 in [0, 1), by the same steps in float64; no repetition penalty. Sums run in
/// another order than Sampler's, so a number within a few roundings of the border of two tokens may
/// give the other one. With temperature 0 nothing of `uniform` is read. Rows with a logit that is
/// NaN or +infinity, or none that is finite, give any id. Nothing waits for the device.
at::Tensor draw(const at::Tensor& logits, const SamplerOptions& options, const at::Tensor& uniform);

}  // namespace mdn::generate
