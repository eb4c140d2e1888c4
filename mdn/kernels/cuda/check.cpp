#include "mdn/kernels/cuda/check.h"

#include "mdn/core/error.h"

namespace mdn::kernels::cuda {

void throw_cuda_error(cudaError_t error, const char* call, const char* file, int line) {
  throw Error(file, line,
              fmt::format("CUDA error {} ({}) in {}", cudaGetErrorName(error),
                          cudaGetErrorString(error), call));
}

}  // namespace mdn::kernels::cuda
