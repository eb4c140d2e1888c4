// general_momentum_masks: the masks of general_momentum_delta_rule (docs/math/momentum_variants.md,
// section 2) for chunks of 64 tokens, from the coefficients of their tokens,
//
//     Mu[t,j] = mu_t Mu[t-1,j],                              Mu[j,j] = 1
//     G[t,j]  = alpha_t G[t-1,j] + kappa_t Mu[t-1,j],        G[j,j]  = beta_j
//     H[t,j]  = pi_t G[t-1,j] + lambda_t Mu[t-1,j],          0 for t <= j
//
// with the states before the chunk as two more columns: M from Mu = 1, G = 0 has (m, b, c) =
// (Mu, G, H), S from Mu = 0, G = 1 has (a, e) = (G, H).
//
// Only CUDA has a kernel; elsewhere the operator is ATen's operations.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda {
using Stream = void*;

inline constexpr int64_t kMaskTokens = 64;  // of a chunk
/// In this order: alpha, mu, eta, beta, kappa, lambda, pi.
inline constexpr int64_t kMaskCoefficients = 7;

/// float32, contiguous, C = kMaskTokens. Columns j are scaled by eta_j.
struct GeneralMomentumMasksForward {
  int64_t chunks = 0;
  const float* coefficients = nullptr;  // [kMaskCoefficients, chunks, C]
  float* G = nullptr;                   // [chunks, C, C]: G[t,j] eta_j
  float* H = nullptr;                   // [chunks, C, C]: H[t,j] eta_j
  float* from_states = nullptr;         // [chunks, C, 2]: -e_t, c_t
  float* read = nullptr;                // [chunks, C, 2]: a_t, -b_t
  float* to_states = nullptr;           // [chunks, C, 2]: G[C,j] eta_j, -Mu[C,j] eta_j
  float* ends = nullptr;                // [chunks, 3]: a_C, -b_C, m_C
};

/// Gradients of all of these give that of the coefficients.
struct GeneralMomentumMasksBackward {
  int64_t chunks = 0;
  const float* coefficients = nullptr;
  const float* d_G = nullptr;
  const float* d_H = nullptr;
  const float* d_from_states = nullptr;
  const float* d_read = nullptr;
  const float* d_to_states = nullptr;
  const float* d_ends = nullptr;
  float* d_coefficients = nullptr;
};

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it; sums
/// have one order.
void general_momentum_masks_forward(const GeneralMomentumMasksForward& call, Stream stream);
void general_momentum_masks_backward(const GeneralMomentumMasksBackward& call, Stream stream);

}  // namespace mdn::kernels::cuda
