// kimi_delta_rule as a torch operator; the contract is mdn/kernels/kimi_delta_rule.h.
//
// Registered as
//
//   mdn::kimi_delta_rule(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor beta,
//       Tensor? initial_S=None, Tensor? cu_seqlens=None, float? scale=None, bool l2norm=False)
//       -> (Tensor o, Tensor final_S)
//   mdn::kimi_delta_rule_step(Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor beta,
//       Tensor(a!) S, Tensor? slots=None, float? scale=None, bool l2norm=False) -> Tensor o
//
// with autograd (once: a second derivative is an error) and meta functions. float64 on the CPU is
// the reference; bfloat16 and float16 on CUDA with K and V multiples of 8 up to 128 are kernels,
// which round operands of products to the inputs' type; everything else is the chunkwise program of
// mdn/ops/kimi_delta_rule_chunks.h, whose arithmetic is float32. The step is a kernel of the CPU's
// and of CUDA's; float64 or K above 512 on CUDA are ATen's operations.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace mdn::ops {

/// q, k [B, T, H, K], v [B, T, HV, V] of one dtype; alpha [B, T, HV, K] (values, not logarithms)
/// and beta [B, T, HV] float32 (float64 with float64); initial_S [N, HV, V, K] of the gates' dtype;
/// cu_seqlens [N + 1] int64 (B = 1). `scale` defaults to K^-1/2. Returns o [B, T, HV, V] and the
/// final states [N, HV, V, K].
std::tuple<at::Tensor, at::Tensor> kimi_delta_rule(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& v, const at::Tensor& alpha,
                                                   const at::Tensor& beta,
                                                   const std::optional<at::Tensor>& initial_S,
                                                   const std::optional<at::Tensor>& cu_seqlens,
                                                   std::optional<double> scale, bool l2norm);

/// One token: q, k [B, H, K], v [B, HV, V], alpha [B, HV, K], beta [B, HV]; S [slots, HV, V, K]
/// contiguous, updated in place; slots [B] int64, or absent: row b has slot b; negative: a padding
/// row, whose o is undefined. No gradient. Returns o [B, HV, V].
at::Tensor kimi_delta_rule_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                const at::Tensor& alpha, const at::Tensor& beta, at::Tensor& S,
                                const std::optional<at::Tensor>& slots, std::optional<double> scale,
                                bool l2norm);

}  // namespace mdn::ops
