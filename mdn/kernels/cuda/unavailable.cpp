// The CUDA backend of a build without CUDA: every function says so.
#include "mdn/core/error.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {
namespace {

[[noreturn]] void unavailable(const char* operation) {
  MDN_THROW(
      "{}: this build has no CUDA backend; configure with -DMDN_CUDA=ON, or use the cpu "
      "backend",
      operation);
}

}  // namespace

std::string unsupported(const MomentumDeltaRuleProblem&) {
  unavailable("momentum_delta_rule");
}
MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem&) {
  unavailable("momentum_delta_rule");
}
void forward(const MomentumDeltaRuleForward&, Stream) {
  unavailable("momentum_delta_rule forward");
}
void backward(const MomentumDeltaRuleBackward&, Stream) {
  unavailable("momentum_delta_rule backward");
}
void step(const MomentumDeltaRuleStep&, Stream) {
  unavailable("momentum_delta_rule step");
}

}  // namespace mdn::kernels::cuda
