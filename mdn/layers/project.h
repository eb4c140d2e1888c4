// Small helpers that layers share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

namespace mdn::layers {

/// The type gates, norms and states are computed in: float64 for float64 models, else float32.
inline at::ScalarType gate_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// x weightᵀ (+ bias): x [..., in], weight [out, in]; an undefined bias is none. Weights kept in
/// another type (float32 masters of a bfloat16 model) are converted to x's.
inline at::Tensor project(const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias = {}) {
  const auto type = x.scalar_type();
  return at::linear(x, weight.to(type),
                    bias.defined() ? std::optional(bias.to(type)) : std::nullopt);
}

}  // namespace mdn::layers
