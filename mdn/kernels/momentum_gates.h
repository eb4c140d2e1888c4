// momentum_gates: the operator's gates from the layer's four projections, in one pass. Per value
// head j, with the entry h = j / (HV/H) of the per-head parameters:
//
//     L     = -exp(Mu_log[h]) softplus(m + mu_bias[j])
//     mu    = exp(max(L, min_log_mu))
//     eta   = 1 + tanh(e / tau)
//     z     = eta exp(log_factor[h]);  cos² = 1 / (1 + z²);  sin² = z² cos²
//     beta  = sin² sigmoid(b)
//     alpha = cos² exp(-exp(A_log[h]) softplus(a + dt_bias[j]))
//
// Only CUDA has a kernel of its own; elsewhere the operator is ATen's operations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels {

struct MomentumGatesProblem {
  int64_t tokens = 0;
  int64_t H = 1;
  int64_t HV = 1;
  DType dtype = DType::kBFloat16;  // of the projections and their gradients
  double tau = 1;
  double min_log_mu = 0;  // minus infinity: no floor
};

/// float32; A_log, Mu_log, log_factor [H], dt_bias, mu_bias [HV].
struct MomentumGatesParameters {
  const float* A_log = nullptr;
  const float* Mu_log = nullptr;
  const float* log_factor = nullptr;
  const float* dt_bias = nullptr;
  const float* mu_bias = nullptr;
};

/// Of a token: rows of HV neighbours, `stride` elements from token to token.
struct MomentumGatesProjections {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* m = nullptr;
  const void* e = nullptr;
  int64_t stride = 0;
};

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it; sums
/// over tokens have one order, so the same call gives the same bits.
namespace cuda {
using Stream = void*;

struct MomentumGatesForward {
  MomentumGatesProblem problem;
  MomentumGatesParameters parameters;
  MomentumGatesProjections projections;
  float* alpha = nullptr;  // [tokens, HV], as the others
  float* mu = nullptr;
  float* eta = nullptr;
  float* beta = nullptr;
};

struct MomentumGatesBackward {
  MomentumGatesProblem problem;
  MomentumGatesParameters parameters;
  MomentumGatesProjections projections;
  const float* d_alpha = nullptr;
  const float* d_mu = nullptr;
  const float* d_eta = nullptr;
  const float* d_beta = nullptr;
  void* d_a = nullptr;  // laid out as the projections, with a stride of their own
  void* d_b = nullptr;
  void* d_m = nullptr;
  void* d_e = nullptr;
  int64_t d_stride = 0;
  /// [5, HV]: A_log, Mu_log, log_factor, dt_bias, mu_bias, each by value head: a per-head
  /// parameter's gradient is the sum over the value heads that share it.
  float* d_parameters = nullptr;
  void* workspace = nullptr;  // momentum_gates_backward_workspace bytes
};

size_t momentum_gates_backward_workspace(const MomentumGatesProblem& problem);
void momentum_gates_forward(const MomentumGatesForward& call, Stream stream);
void momentum_gates_backward(const MomentumGatesBackward& call, Stream stream);
}  // namespace cuda
}  // namespace mdn::kernels
