#include "mdn/layers/short_conv.h"

#include <ATen/ATen.h>

#include "mdn/ops/short_conv.h"

namespace mdn::layers {

at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight, const Sequences& sequences,
                      at::Tensor* state, const at::Tensor& bias) {
  const int64_t T = x.size(1), past = weight.size(2) - 1;
  const auto offset = bias.defined() ? std::optional(bias) : std::nullopt;
  if (!state) {
    return ops::short_conv(x, weight, sequences.cu_seqlens(), offset);
  }
  sequences.check_start("short_conv", state->defined());
  if (sequences.packed()) {
    *state = sequences.last_rows(x, past);
    return ops::short_conv(x, weight, sequences.cu_seqlens(), offset);
  }
  const at::Tensor before =
      state->defined() ? *state : at::zeros({x.size(0), past, x.size(2)}, x.options());
  if (x.is_cuda() && T == 1) {
    *state = before;
    return ops::short_conv_step(x.squeeze(1), weight, before, offset).unsqueeze(1);
  }
  const at::Tensor all = at::cat({before, x}, 1);  // [B, W-1 + T, C]
  *state = all.narrow(1, T, past).contiguous();
  // Outputs of the carried tokens are computed again and dropped: there are W-1 of them.
  return ops::short_conv(all, weight, std::nullopt, offset).narrow(1, past, T).contiguous();
}

}  // namespace mdn::layers
