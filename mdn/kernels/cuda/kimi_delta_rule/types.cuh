// Run-time sizes and types to template arguments.
#pragma once

#include <type_traits>

#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda::kimi {

/// Calls f(TypeTag<T>{}, integral_constant<int, kK>{}) for a 16-bit type and padded key channels.
template <class F>
void with_kernel(const KimiDeltaRuleProblem& problem, F&& f) {
  const auto with_keys = [&](auto type) {
    if (padded_keys(problem.K) == 64) {
      f(type, std::integral_constant<int, 64>{});
    } else {
      f(type, std::integral_constant<int, 128>{});
    }
  };
  if (problem.dtype == DType::kFloat16) {
    with_keys(TypeTag<__half>{});
  } else {
    with_keys(TypeTag<__nv_bfloat16>{});
  }
}

}  // namespace mdn::kernels::cuda::kimi
