// momentum_delta_rule as a torch operator; the contract is mdn/kernels/momentum_delta_rule.h.
//
// Registered as
//
//   mdn::momentum_delta_rule(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? mu, Tensor eta,
//       Tensor beta, Tensor? pi=None, Tensor? initial_S=None, Tensor? initial_M=None,
//       Tensor? cu_seqlens=None, float? scale=None, bool l2norm=False)
//       -> (Tensor o, Tensor final_S, Tensor final_M)
//   mdn::momentum_delta_rule_step(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor? mu,
//       Tensor eta, Tensor beta, Tensor(a!) S, Tensor(b!)? M, Tensor? pi=None, Tensor? slots=None,
//       float? scale=None, bool l2norm=False) -> Tensor o
//
// with autograd (once: a second derivative is an error) and meta functions. The dtype and device
// choose the backend: float64 on the CPU the reference, float32 and bfloat16 on the CPU the SIMD
// kernels, CUDA tensors the CUDA kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mdn::ops {

/// q, k [B, T, H, K], v [B, T, HV, V] of one dtype; gates [B, T, HV] float32 (float64 with
/// float64); initial_S, initial_M [N, HV, V, K] of the gates' dtype, both or neither; cu_seqlens [N
/// + 1] int64 (B = 1). `scale` defaults to K^-1/2. Non-contiguous inputs are copied. Returns o [B,
/// T, HV, V] and the final states [N, HV, V, K]. A cu_seqlens on the device costs a synchronisation
/// for its check; one on the CPU does not. No mu: mu is 0, initial_M must be absent and the final M
/// is an empty tensor.
std::tuple<at::Tensor, at::Tensor, at::Tensor> momentum_delta_rule(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& alpha,
    const std::optional<at::Tensor>& mu, const at::Tensor& eta, const at::Tensor& beta,
    const std::optional<at::Tensor>& pi, const std::optional<at::Tensor>& initial_S,
    const std::optional<at::Tensor>& initial_M, const std::optional<at::Tensor>& cu_seqlens,
    std::optional<double> scale, bool l2norm);

/// One token: q, k [B, H, K], v [B, HV, V], gates [B, HV]; S, M [slots, HV, V, K] contiguous, of
/// the gates' dtype or, on CUDA, float16 (what is past ±65504 is stored as ±65504), updated in
/// place; slots [B] int64, or absent: row b has slot b; negative: a padding row, whose o is
/// undefined. mu and M are given together, or neither. No gradient. Returns o [B, HV, V].
at::Tensor momentum_delta_rule_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& alpha, const std::optional<at::Tensor>& mu,
                                    const at::Tensor& eta, const at::Tensor& beta, at::Tensor& S,
                                    const std::optional<at::Tensor>& M,
                                    const std::optional<at::Tensor>& pi,
                                    const std::optional<at::Tensor>& slots,
                                    std::optional<double> scale, bool l2norm);

}  // namespace mdn::ops
