// What dispatch.cpp is told while a direction has no Hopper kernels: not supported, so that the
// portable kernels run. A direction's own file replaces its half of this one.
#include "mdn/kernels/cuda/momentum_delta_rule/hopper.h"

#include "mdn/core/error.h"

namespace mdn::kernels::cuda {

bool hopper_supports_backward(const MomentumDeltaRuleProblem&, const DeviceFacts&) {
  return false;
}
size_t hopper_backward_workspace(const MomentumDeltaRuleProblem&, const DeviceFacts&) {
  return 0;
}
void hopper_backward(const MomentumDeltaRuleBackward&, const DeviceFacts&, cudaStream_t) {
  MDN_THROW("momentum_delta_rule: there is no Hopper backward pass in this build");
}

}  // namespace mdn::kernels::cuda
