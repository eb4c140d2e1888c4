// The device facts that choices depend on.
#pragma once

namespace mdn::kernels::cuda {

struct DeviceFacts {
  int index = 0;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int shared_memory = 0;  // bytes a block may opt in to
};

/// Of the current device; read once a device. Throws in CUDA's words where there is none.
const DeviceFacts& device_facts();

}  // namespace mdn::kernels::cuda
