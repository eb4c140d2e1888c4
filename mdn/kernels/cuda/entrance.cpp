#include "mdn/kernels/cuda/entrance.h"

#include <cstdint>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {

constexpr int kMinMajor = 8;  // compute capability 8.0

std::string unsupported_device(const DeviceFacts& device) {
  if (device.major < kMinMajor) {
    return fmt::format("the GPU has compute capability {}.{}; supported are 8.0 and above",
                       device.major, device.minor);
  }
  return "";
}

void check_workspace_address(const char* operation, const void* workspace) {
  MDN_CHECK(reinterpret_cast<uintptr_t>(workspace) % kPlace == 0,
            "{} on CUDA: the workspace at {} is not on a multiple of {} bytes", operation,
            workspace, kPlace);
}

}  // namespace mdn::kernels::cuda
