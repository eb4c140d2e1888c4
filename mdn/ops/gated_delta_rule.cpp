#include "mdn/ops/gated_delta_rule.h"

#include <ATen/ATen.h>

#include "mdn/ops/momentum_delta_rule.h"

namespace mdn::ops {

std::tuple<at::Tensor, at::Tensor> gated_delta_rule(const at::Tensor& q, const at::Tensor& k,
                                                    const at::Tensor& v, const at::Tensor& alpha,
                                                    const at::Tensor& beta,
                                                    const std::optional<at::Tensor>& pi,
                                                    const std::optional<at::Tensor>& initial_S,
                                                    const std::optional<at::Tensor>& cu_seqlens,
                                                    std::optional<double> scale, bool l2norm) {
  auto [o, S, M] = momentum_delta_rule(q, k, v, alpha, std::nullopt, beta, at::ones_like(beta), pi,
                                       initial_S, std::nullopt, cu_seqlens, scale, l2norm);
  return {o, S};
}

at::Tensor gated_delta_rule_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& alpha, const at::Tensor& beta, at::Tensor& S,
                                 const std::optional<at::Tensor>& pi,
                                 const std::optional<at::Tensor>& slots,
                                 std::optional<double> scale, bool l2norm) {
  return momentum_delta_rule_step(q, k, v, alpha, std::nullopt, beta, at::ones_like(beta), S,
                                  std::nullopt, pi, slots, scale, l2norm);
}

}  // namespace mdn::ops
