// What follows the operator in a linear-attention layer: norm and gate, then the last projection.
#pragma once

#include <ATen/core/Tensor.h>

#include "mdn/layers/project.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {

/// Undefined tensors are parts the layer does not have: no gate, a full or a low-rank one.
struct OutputWeights {
  at::Tensor g_proj;              // [HV V, D]
  at::Tensor g_proj_0, g_proj_1;  // [r, D], [HV V, r]
  at::Tensor g_proj_1_bias;       // [HV V]
  at::Tensor o_norm;              // [V]
  at::Tensor o_proj;              // [D, HV V]
};

/// RMSNorm_V(o), gated where the layer has a gate; o [B, T, HV, V], the layer's input x [B, T, D]
/// -> [B, T, HV V], what o_proj reads.
at::Tensor gated_norm(const OutputWeights& weights, ops::RmsNormGating gating, double eps,
                      const at::Tensor& o, const Projected& x);

}  // namespace mdn::layers
