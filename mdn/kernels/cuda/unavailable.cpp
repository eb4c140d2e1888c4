// The CUDA backend of a build without CUDA: every function says so.
#include "mdn/core/error.h"
#include "mdn/kernels/attention_step.h"
#include "mdn/kernels/comba_prediction.h"
#include "mdn/kernels/cross_entropy.h"
#include "mdn/kernels/decay_gates.h"
#include "mdn/kernels/general_momentum_masks.h"
#include "mdn/kernels/kimi_delta_rule.h"
#include "mdn/kernels/linear.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/rotary.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/kernels/swiglu.h"
#include "mdn/kernels/unit_lower_inverse.h"

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

// Where kernels are not supported a program of libtorch's operations runs.
std::string unsupported(const KimiDeltaRuleProblem&) {
  return "this build has no CUDA backend";
}
std::string unsupported(const KimiDeltaRuleStep&) {
  return "this build has no CUDA backend";
}
KimiDeltaRuleSizes sizes(const KimiDeltaRuleProblem&) {
  unavailable("kimi_delta_rule");
}
void forward(const KimiDeltaRuleForward&, Stream) {
  unavailable("kimi_delta_rule forward");
}
void backward(const KimiDeltaRuleBackward&, Stream) {
  unavailable("kimi_delta_rule backward");
}
void step(const KimiDeltaRuleStep&, Stream) {
  unavailable("kimi_delta_rule step");
}

std::string short_conv_unsupported(const ShortConvProblem&) {
  unavailable("short_conv");
}
size_t short_conv_backward_workspace(const ShortConvProblem&) {
  unavailable("short_conv");
}
void short_conv_forward(const ShortConvForward&, Stream) {
  unavailable("short_conv forward");
}
void short_conv_backward(const ShortConvBackward&, Stream) {
  unavailable("short_conv backward");
}
void short_conv_step(const ShortConvStep&, Stream) {
  unavailable("short_conv step");
}

std::string linear_unsupported(const Linear&) {
  unavailable("linear");
}
void linear(const Linear&, Stream) {
  unavailable("linear");
}

std::string rms_norm_unsupported(DType, int64_t) {
  unavailable("rms_norm");
}
size_t rms_norm_backward_workspace(int64_t, int64_t) {
  unavailable("rms_norm");
}
void rms_norm_forward(const RmsNormForward&, Stream) {
  unavailable("rms_norm forward");
}
void rms_norm_backward(const RmsNormBackward&, Stream) {
  unavailable("rms_norm backward");
}

void rotary(const Rotary&, Stream) {
  unavailable("rotary");
}

void swiglu_forward(const SwigluForward&, Stream) {
  unavailable("swiglu forward");
}
void swiglu_backward(const SwigluBackward&, Stream) {
  unavailable("swiglu backward");
}

void general_momentum_masks_forward(const GeneralMomentumMasksForward&, Stream) {
  unavailable("general_momentum_masks forward");
}
void general_momentum_masks_backward(const GeneralMomentumMasksBackward&, Stream) {
  unavailable("general_momentum_masks backward");
}

void unit_lower_inverse(const UnitLowerInverse&, Stream) {
  unavailable("unit_lower_inverse");
}

size_t momentum_gates_backward_workspace(const MomentumGatesProblem&) {
  unavailable("momentum_gates");
}
void momentum_gates_forward(const MomentumGatesForward&, Stream) {
  unavailable("momentum_gates forward");
}
void momentum_gates_backward(const MomentumGatesBackward&, Stream) {
  unavailable("momentum_gates backward");
}

size_t decay_gates_backward_workspace(const DecayGatesProblem&) {
  unavailable("decay_gates");
}
void decay_gates_forward(const DecayGatesForward&, Stream) {
  unavailable("decay_gates forward");
}
void decay_gates_backward(const DecayGatesBackward&, Stream) {
  unavailable("decay_gates backward");
}

std::string attention_step_unsupported(DType, int64_t) {
  unavailable("attention_step");
}
size_t attention_step_workspace(const AttentionStep&) {
  unavailable("attention_step");
}
void attention_step(const AttentionStep&, Stream) {
  unavailable("attention_step");
}

void comba_prediction(const CombaPrediction&, Stream) {
  unavailable("comba_prediction");
}

void cross_entropy(const CrossEntropy&, Stream) {
  unavailable("cross_entropy");
}

}  // namespace mdn::kernels::cuda
