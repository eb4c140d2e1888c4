// Every call of the CUDA runtime and every launch is checked; a failure throws mdn::Error with the
// call, CUDA's name of the error and CUDA's own words. Free of fmt, so that .cu files stay light.
#pragma once

#include <cuda_runtime_api.h>

namespace mdn::kernels::cuda {

[[noreturn]] void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line);

}  // namespace mdn::kernels::cuda

/// Checks a call of the CUDA runtime.
#define MDN_CUDA_CHECK(call)                                                              \
  do {                                                                                    \
    const cudaError_t mdn_cuda_status = (call);                                           \
    if (mdn_cuda_status != cudaSuccess) {                                                 \
      ::mdn::kernels::cuda::throw_cuda_error(mdn_cuda_status, #call, __FILE__, __LINE__); \
    }                                                                                     \
  } while (false)
