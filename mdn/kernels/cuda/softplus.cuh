// Of the gates.
#pragma once

namespace mdn::kernels::cuda {

/// log(1 + exp(x))
__device__ inline float softplus(float x) {
  return x > 20 ? x : log1pf(expf(x));
}

}  // namespace mdn::kernels::cuda
