// The loss of a language model from its last hidden states, with gradients. On CUDA the logits
// exist for a few thousand tokens at a time, and never in float32; elsewhere it is ATen's
// operations.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// Mean over the targets that are not -100 of log(sum_c exp(x_c)) - x_target, x = weight hidden: a
/// scalar in float32 (float64 for float64 input). hidden [..., D], weight [vocab, D] of any float
/// dtype (converted to hidden's), targets [...] int64 in [0, vocab) or -100.
///
/// On CUDA the gradients are computed with the loss, chunk by chunk, and kept until the backward
/// pass; a target that is out of range makes the loss NaN.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets);

}  // namespace mdn::ops
