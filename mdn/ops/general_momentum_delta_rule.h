// general_momentum_delta_rule: one operator for the ways in which momentum can act. Per value head
// and token,
//
//     r  = v - (pi S - lambda M)ᵀ k          the prediction, with what it sees of S and M
//     S <- alpha S - kappa M + beta eta k rᵀ
//     M <- mu M - eta k rᵀ
//     o  = scale Sᵀ q
//
// with S and M on the right being those before the token. By kappa and lambda it is
//
//     momentum_delta_rule (heavy ball)   kappa = beta mu,      lambda = 0
//     Nesterov's look-ahead              kappa = beta mu,      lambda = beta mu
//     the quasi-hyperbolic step          kappa = beta nu mu,   lambda = 0
//
// Derivation: docs/math/momentum_variants.md. It is a program of batched matrix operations over
// chunks of 64 tokens for every device; masks are made by products and sums of the coefficients
// alone, so that any of them may be 0. Registered for torch as
//
//   mdn::general_momentum_delta_rule(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor mu,
//       Tensor eta, Tensor beta, Tensor kappa, Tensor lambda, Tensor? pi=None,
//       Tensor? initial_S=None, Tensor? initial_M=None, Tensor? cu_seqlens=None,
//       float? scale=None, bool l2norm=False) -> (Tensor o, Tensor final_S, Tensor final_M)
//   mdn::general_momentum_delta_rule_step(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor mu,
//       Tensor eta, Tensor beta, Tensor kappa, Tensor lambda, Tensor(a!) S, Tensor(b!) M,
//       Tensor? pi=None, float? scale=None, bool l2norm=False) -> Tensor o
//
// with autograd (once). Between the passes only the inputs are kept: the backward pass computes the
// forward pass again.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mdn::ops {

/// q, k [B, T, H, K], v [B, T, HV, V] of one dtype; alpha, mu, eta, beta, kappa, lambda, pi
/// [B, T, HV] float32 (float64 with float64), absent pi: alpha; initial_S, initial_M [N, HV, V, K]
/// of the gates' dtype, both or neither; cu_seqlens [N + 1] int64 (B = 1). `scale` defaults to
/// K^-1/2. Arithmetic is of the gates' type.
/// Returns o [B, T, HV, V] and the final states [N, HV, V, K].
std::tuple<at::Tensor, at::Tensor, at::Tensor> general_momentum_delta_rule(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& alpha,
    const at::Tensor& mu, const at::Tensor& eta, const at::Tensor& beta, const at::Tensor& kappa,
    const at::Tensor& lambda, const std::optional<at::Tensor>& pi,
    const std::optional<at::Tensor>& initial_S, const std::optional<at::Tensor>& initial_M,
    const std::optional<at::Tensor>& cu_seqlens, std::optional<double> scale, bool l2norm);

/// One token: q, k [B, H, K], v [B, HV, V], coefficients [B, HV]; S, M [B, HV, V, K] updated in
/// place. No gradient. Returns o [B, HV, V].
at::Tensor general_momentum_delta_rule_step(const at::Tensor& q, const at::Tensor& k,
                                            const at::Tensor& v, const at::Tensor& alpha,
                                            const at::Tensor& mu, const at::Tensor& eta,
                                            const at::Tensor& beta, const at::Tensor& kappa,
                                            const at::Tensor& lambda, at::Tensor& S, at::Tensor& M,
                                            const std::optional<at::Tensor>& pi,
                                            std::optional<double> scale, bool l2norm);

}  // namespace mdn::ops
