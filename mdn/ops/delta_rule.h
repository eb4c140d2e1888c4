// What calls of the delta rules (momentum, general momentum, Kimi) have in common: their sizes, the
// type of their gates, where a step's states lie.
#pragma once

#include "mdn/ops/tensor.h"

namespace mdn::ops {

/// Gates and states are float32, beside float64 inputs float64.
inline at::ScalarType gate_type_of(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

struct HeadSizes {
  int64_t B, T, H, K, HV, V;
};

/// Of q [B, T, H, K] and v [B, T, HV, V].
HeadSizes sizes_of_sequences(const char* op, const at::Tensor& q, const at::Tensor& v);

/// Of a step's q [B, H, K] and v [B, HV, V], with T = 1.
HeadSizes sizes_of_step(const char* op, const at::Tensor& q, const at::Tensor& v);

/// Checks that a step of B sequences finds its states in S [slots, HV, V, K]: `slots` [B] int64 or,
/// without, the first B. Slots on a GPU are not read. Returns them contiguous.
std::optional<at::Tensor> check_slots(const char* op, const std::optional<at::Tensor>& slots,
                                      const at::Tensor& S, int64_t B);

/// Of outputs: 1 / sqrt(K) where none is given.
double scale_of(std::optional<double> scale, int64_t K);

}  // namespace mdn::ops
