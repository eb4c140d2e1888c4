// The causal depthwise convolution with SiLU that precedes q, k and v.
#pragma once

#include <ATen/core/Tensor.h>

#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// y[t, c] = silu(sum_w weight[c, 0, w] x[t - (W-1) + w, c] + bias[c]), each sequence starting from
/// zeros or from `state`. x [B, T, C], weight [C, 1, W], bias [C]; an undefined bias is none.
///
/// `state` [N, W-1, C] holds a sequence's last W-1 inputs, oldest first. Where given (defined) it
/// is read first, and replaced by the state after x (in place by a single token on CUDA); an
/// undefined one stands for zeros. With packed sequences it must be undefined.
at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight, const Sequences& sequences,
                      at::Tensor* state, const at::Tensor& bias = {});

}  // namespace mdn::layers
