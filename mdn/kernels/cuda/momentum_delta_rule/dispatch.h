// Which kernels a call gets: one plain function, whose answer can be printed.
#pragma once

#include <string>

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

enum class Path { kPortable, kHopper };

struct Choice {
  Path forward = Path::kPortable;
  Path backward = Path::kPortable;  // kHopper only after a Hopper forward pass
};

/// The problem must be supported. Setting MDN_CUDA_PORTABLE=1 in the environment (read once) keeps
/// every call off the Hopper kernels: for comparing the two, and for ruling one out.
Choice choose(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);

/// What the device cannot do of the problem, and what is supported; empty: nothing.
std::string unsupported(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);

/// For people: "forward hopper, backward portable".
std::string describe(const Choice& choice);

}  // namespace mdn::kernels::cuda
