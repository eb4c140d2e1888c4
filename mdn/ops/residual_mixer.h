// A pre-norm block around any mixer as one node of the graph that keeps the block's input and its
// projections: what the mixer makes of these is made again in the backward pass. All projections
// are one matrix product.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace mdn::ops {

/// out [D, E] and in, [rows, D] each, are of any float dtype, converted to `type`, that of the
/// products. `columns` are the sizes that the projections, side by side in the order of `in`, are
/// divided into. `mix` makes [B, T, E] of these, [B, T, size] of `type`, with operators that
/// autograd knows; it is called twice and must do the same each time. `between` are the other
/// tensors that it reads and that want a gradient.
struct ResidualMixer {
  at::Tensor norm;  // [D]
  double eps = 0;
  at::ScalarType type = at::kFloat;
  std::vector<at::Tensor> in, between;
  std::vector<int64_t> columns;
  at::Tensor out;
  std::function<at::Tensor(const std::vector<at::Tensor>& projected)> mix;
};

/// x + out(mix(in(n))), n = rms_norm(x, norm, eps) in `type`; x [B, T, D], of `type` or float32.
at::Tensor residual_mixer(const at::Tensor& x, const ResidualMixer& block);

}  // namespace mdn::ops
