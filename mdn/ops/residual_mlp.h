// A whole pre-norm SwiGLU block on CUDA, with its gradient: one node in the graph that keeps its
// input and the two projections, and makes the norm and the product again in the backward pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// norm [D]; gate_proj, up_proj [I, D]; down_proj [D, I]: of any float dtype, converted to x's.
struct ResidualMlp {
  at::Tensor norm, gate_proj, up_proj, down_proj;
};

/// Whether residual_mlp takes this: x on CUDA, of 16 or 32 bits, sizes that its kernels handle.
bool residual_mlp_supports(const at::Tensor& x, const ResidualMlp& weights);

/// x + down(silu(gate(n)) up(n)), n = rms_norm(x, norm, eps); x [..., D].
at::Tensor residual_mlp(const at::Tensor& x, const ResidualMlp& weights, double eps);

}  // namespace mdn::ops
