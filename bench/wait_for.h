// Until a device has done what is queued there.
#pragma once

#include <c10/core/Device.h>

#ifdef MDN_CUDA
#include <c10/cuda/CUDAFunctions.h>
#endif

namespace mdn::bench {

inline void wait_for([[maybe_unused]] c10::Device device) {
#ifdef MDN_CUDA
  if (device.is_cuda()) {
    c10::cuda::device_synchronize();
  }
#endif
}

}  // namespace mdn::bench
