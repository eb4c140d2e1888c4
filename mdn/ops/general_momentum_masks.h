// general_momentum_masks with gradients: the kernel for float32 on CUDA, ATen's operations
// elsewhere.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// Tokens of a chunk, a power of two.
inline constexpr int64_t kMaskTokens = 64;

/// The coefficients with which the writes of a chunk's tokens (column j, scaled by eta_j) and the
/// states before it act on the token t: in S (G), in what it predicts from (H), and at the chunk's
/// end (docs/math/momentum_variants.md, section 2). C = kMaskTokens.
struct GeneralMomentumMasks {
  at::Tensor G, H;         // [m, C, C], lower triangular (H: strictly)
  at::Tensor from_states;  // [m, C, 2]: -e, c, of S and M in predictions
  at::Tensor read;         // [m, C, 2]: a, -b, of S and M in S
  at::Tensor to_states;    // [m, C, 2]: the last rows, of G and of -Mu
  at::Tensor ends;         // [m, 3]: the last a, -b, m
};

/// Coefficients [7, m, C] of one float dtype, those of alpha, mu, eta, beta, kappa, lambda, pi in
/// this order.
GeneralMomentumMasks general_momentum_masks(const at::Tensor& coefficients);

}  // namespace mdn::ops
