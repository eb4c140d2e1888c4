// Small helpers that layers share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

namespace mdn::layers {

/// The type gates, norms and states are computed in: float64 for float64 models, else float32.
inline at::ScalarType gate_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// x weightᵀ (+ bias): x [..., in], weight [out, in]; an undefined bias is none.
inline at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {}) {
  return at::linear(x, weight, bias.defined() ? std::optional(bias) : std::nullopt);
}

}  // namespace mdn::layers
