#include "mdn/layers/short_conv.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"

namespace mdn::layers {

at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight, const Sequences& sequences,
                      at::Tensor* state) {
  const int64_t T = x.size(1), W = weight.size(2);
  MDN_CHECK(!state || !sequences.packed(),
            "short_conv: a carried state with packed sequences is not supported");
  at::Tensor padded;  // [B, W-1 + T, C]
  if (state && state->defined()) {
    padded = at::cat({*state, x}, 1);
  } else {
    padded = at::constant_pad_nd(x, {0, 0, W - 1, 0});
  }
  if (state) {
    *state = padded.narrow(1, T, W - 1).contiguous();
  }
  const at::Tensor taps = weight.squeeze(1).t().to(x.scalar_type());  // [W, C]
  at::Tensor y;
  const at::Tensor positions =
      sequences.packed() ? sequences.positions(T, x.device()).view({1, T, 1}) : at::Tensor();
  for (int64_t w = 0; w < W; ++w) {
    const int64_t back = W - 1 - w;
    at::Tensor term = padded.narrow(1, w, T) * taps[w];
    if (sequences.packed() && back > 0) {
      term = term * (positions >= back).to(x.scalar_type());
    }
    y = y.defined() ? y + term : term;
  }
  return at::silu(y);
}

}  // namespace mdn::layers
