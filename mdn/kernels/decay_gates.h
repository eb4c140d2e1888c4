// decay_gates: step sizes, decays and write strengths of Mamba2, GDN and Comba in one pass. Per
// value head j,
//
//     dt    = min(max(softplus(a + dt_bias[j]), low), high)
//     alpha = exp(-exp(A_log[j]) dt)
//     beta  = max_beta sigmoid(b)
//
// and in the forward pass those of Kimi Delta Attention, which has dt and alpha for each of a
// head's channels.
//
// Only CUDA has a kernel of its own; elsewhere the operator is ATen's operations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {
using Stream = void*;

struct DecayGatesProblem {
  int64_t tokens = 0;
  int64_t HV = 1;
  int64_t channels = 1;            // of a head; more than one only in the forward pass
  DType dtype = DType::kBFloat16;  // of a, b and their gradients
  double low = 0;
  double high = 0;
  double max_beta = 1;
  const float* A_log = nullptr;    // [HV]
  const float* dt_bias = nullptr;  // [HV channels]
  /// Of a token: rows of HV channels (b: HV) neighbours, with so many elements from token to token.
  /// b null: no beta.
  const void* a = nullptr;
  int64_t a_stride = 0;
  const void* b = nullptr;
  int64_t b_stride = 0;
};

struct DecayGatesForward {
  DecayGatesProblem problem;
  float* alpha = nullptr;  // [tokens, HV channels]
  float* dt = nullptr;     // the same; null: not wanted
  float* beta = nullptr;   // [tokens, HV], only with b
};

struct DecayGatesBackward {
  DecayGatesProblem problem;
  const float* d_alpha = nullptr;  // null: 0, as the others
  const float* d_dt = nullptr;
  const float* d_beta = nullptr;
  void* d_a = nullptr;  // laid out as a and b, with strides of their own
  int64_t d_a_stride = 0;
  void* d_b = nullptr;
  int64_t d_b_stride = 0;
  float* d_parameters = nullptr;  // [2, HV]: A_log, dt_bias
  void* workspace = nullptr;      // decay_gates_backward_workspace bytes
};

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it; sums
/// over tokens have one order, so the same call gives the same bits.
size_t decay_gates_backward_workspace(const DecayGatesProblem& problem);
void decay_gates_forward(const DecayGatesForward& call, Stream stream);
void decay_gates_backward(const DecayGatesBackward& call, Stream stream);

}  // namespace mdn::kernels::cuda
