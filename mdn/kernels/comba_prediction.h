// comba_prediction: the prediction scalar that makes Comba's operator the gated delta rule. With
// p = s k of the unnormalised key k of head h, s = key_scale[h], and both normalised inside the
// operator, p is a multiple of k; per value head j of h,
//
//     pi[j] = alpha[j] s sqrt((|k|² + eps) / (s² |k|² + eps))
//
// Only CUDA has a kernel; elsewhere the layer is ATen's operations.
#pragma once

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {
using Stream = void*;

struct CombaPrediction {
  int64_t tokens = 0;
  int64_t H = 1;
  int64_t HV = 1;  // value head j reads key head j / (HV/H)
  int64_t K = 0;
  DType dtype = DType::kBFloat16;    // of k
  const void* k = nullptr;           // [tokens, H, K]
  const float* key_scale = nullptr;  // [H]
  const float* alpha = nullptr;      // [tokens, HV]
  float* pi = nullptr;               // [tokens, HV]
};

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it.
void comba_prediction(const CombaPrediction& call, Stream stream);

}  // namespace mdn::kernels::cuda
