// What the Hopper kernels (sm_90a) offer to dispatch.cpp. Nobody else includes this.
//
// The two directions are asked apart: a forward pass that Hopper can do may be followed by a
// portable backward pass, which reads nothing from `saved`. The Hopper backward pass is used only
// after the Hopper forward pass, so it may read what that one left in `saved`.
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// The call has passed check() and the portable limits. Supported means: right and fast.
bool hopper_supports_forward(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);
bool hopper_supports_backward(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);

/// Bytes, each a multiple of 256. `saved` only where hopper_supports_backward too.
size_t hopper_forward_workspace(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);
size_t hopper_backward_workspace(const MomentumDeltaRuleProblem& problem,
                                 const DeviceFacts& device);
size_t hopper_saved(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device);

/// Queue the work on `stream`; capturable in a graph, no waiting, no allocation. With `call.saved`
/// null the forward pass leaves nothing for a backward pass.
void hopper_forward(const MomentumDeltaRuleForward& call, const DeviceFacts& device,
                    cudaStream_t stream);
void hopper_backward(const MomentumDeltaRuleBackward& call, const DeviceFacts& device,
                     cudaStream_t stream);

}  // namespace mdn::kernels::cuda
