// What the entrances of operators with several kernels check alike.
#pragma once

#include <string>

#include "mdn/kernels/cuda/device.h"

namespace mdn::kernels::cuda {

/// Why the portable kernels do not run on a device, and what they run on; empty: they do.
std::string unsupported_device(const DeviceFacts& device);

/// Throws unless the workspace begins where workspace.h lets everything begin. `operation`: its
/// name in the error.
void check_workspace_address(const char* operation, const void* workspace);

}  // namespace mdn::kernels::cuda
