// gated_delta_rule: the momentum delta rule without momentum. Per value head and token,
//
//     r = v - pi Sᵀ k;   S <- alpha S + beta k rᵀ;   o = scale Sᵀ q
//
// which is momentum_delta_rule without momentum, with the step sizes eta = beta and 1. Gated
// DeltaNet has pi = alpha; Comba another pi.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mdn::ops {

/// Shapes, dtypes and errors as momentum_delta_rule's (mdn/ops/momentum_delta_rule.h). Absent pi:
/// alpha. Returns o [B, T, HV, V] and the final S [N, HV, V, K].
std::tuple<at::Tensor, at::Tensor> gated_delta_rule(const at::Tensor& q, const at::Tensor& k,
                                                    const at::Tensor& v, const at::Tensor& alpha,
                                                    const at::Tensor& beta,
                                                    const std::optional<at::Tensor>& pi,
                                                    const std::optional<at::Tensor>& initial_S,
                                                    const std::optional<at::Tensor>& cu_seqlens,
                                                    std::optional<double> scale, bool l2norm);

/// One token, S [slots, HV, V, K] updated in place; as momentum_delta_rule_step.
at::Tensor gated_delta_rule_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& alpha, const at::Tensor& beta, at::Tensor& S,
                                 const std::optional<at::Tensor>& pi,
                                 const std::optional<at::Tensor>& slots,
                                 std::optional<double> scale, bool l2norm);

}  // namespace mdn::ops
