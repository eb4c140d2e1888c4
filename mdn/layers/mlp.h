// The SwiGLU feed-forward block.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::layers {

struct MlpWeights {
  at::Tensor gate_proj, up_proj;  // [I, D]
  at::Tensor down_proj;           // [D, I]
};

/// down(silu(gate(x)) * up(x)); x [..., D].
at::Tensor mlp(const MlpWeights& weights, const at::Tensor& x);

}  // namespace mdn::layers
