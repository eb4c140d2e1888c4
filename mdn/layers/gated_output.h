// What follows the operator in a linear-attention layer: norm, gate, projection.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::layers {

enum class GateActivation { kSigmoid, kSilu };

/// Undefined tensors are parts the layer does not have: no gate, a full or a low-rank one.
struct OutputWeights {
  at::Tensor g_proj;              // [HV V, D]
  at::Tensor g_proj_0, g_proj_1;  // [r, D], [HV V, r]
  at::Tensor g_proj_1_bias;       // [HV V]
  at::Tensor o_norm;              // [V]
  at::Tensor o_proj;              // [D, HV V]
};

/// o_proj (RMSNorm_V(o) activation(g)); o [B, T, HV, V], the layer's input x [B, T, D]
/// -> [B, T, D].
at::Tensor gated_output(const OutputWeights& weights, GateActivation activation, double eps,
                        const at::Tensor& o, const at::Tensor& x);

}  // namespace mdn::layers
