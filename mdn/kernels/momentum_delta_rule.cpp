// What every backend checks before it touches memory.
#include "mdn/kernels/momentum_delta_rule.h"

#include "mdn/core/error.h"
#include "mdn/kernels/check.h"

namespace mdn::kernels {
namespace {

constexpr const char* kOp = "momentum_delta_rule";

/// What only a problem with momentum has.
void check_absent(const char* name, const void* pointer) {
  MDN_CHECK(pointer == nullptr,
            "momentum_delta_rule: {} is given, but the problem is without momentum", name);
}

void check_inputs(const MomentumDeltaRuleProblem& problem, const MomentumDeltaRuleInputs& x) {
  check_given(kOp, "q", x.q);
  check_given(kOp, "k", x.k);
  check_given(kOp, "v", x.v);
  check_given(kOp, "alpha", x.alpha);
  if (problem.momentum) {
    check_given(kOp, "mu", x.mu);
  } else {
    check_absent("mu", x.mu);
    check_absent("initial_M", x.initial_M);
  }
  check_given(kOp, "eta", x.eta);
  check_given(kOp, "beta", x.beta);
}

}  // namespace

void check(const MomentumDeltaRuleForward& call) {
  check_problem(kOp, call.problem);
  check_inputs(call.problem, call.inputs);
  check_given(kOp, "o", call.o);
  if (!call.problem.momentum) {
    check_absent("final_M", call.final_M);
  }
}

void check(const MomentumDeltaRuleBackward& call) {
  check_problem(kOp, call.problem);
  check_inputs(call.problem, call.inputs);
  check_given(kOp, "d_o", call.d_o);
  check_given(kOp, "d_q", call.d_q);
  check_given(kOp, "d_k", call.d_k);
  check_given(kOp, "d_v", call.d_v);
  check_given(kOp, "d_alpha", call.d_alpha);
  if (call.problem.momentum) {
    check_given(kOp, "d_mu", call.d_mu);
  } else {
    check_absent("d_mu", call.d_mu);
    check_absent("d_final_M", call.d_final_M);
    check_absent("d_initial_M", call.d_initial_M);
  }
  check_given(kOp, "d_eta", call.d_eta);
  check_given(kOp, "d_beta", call.d_beta);
  MDN_CHECK((call.d_pi != nullptr) == (call.inputs.pi != nullptr),
            "momentum_delta_rule: d_pi is {} while pi is {}; the gradient goes with its input",
            call.d_pi ? "given" : "missing", call.inputs.pi ? "given" : "missing");
}

void check(const MomentumDeltaRuleStep& call) {
  check_step(kOp, call.B, call.H, call.HV, call.K, call.V, call.scale);
  MDN_CHECK(call.state_dtype == DType::kFloat32 || call.state_dtype == DType::kFloat16,
            "momentum_delta_rule: states of {}; they must be float32 (the type of the gates) or "
            "float16",
            name_of(call.state_dtype));
  check_given(kOp, "q", call.q);
  check_given(kOp, "k", call.k);
  check_given(kOp, "v", call.v);
  check_given(kOp, "alpha", call.alpha);
  check_given(kOp, "eta", call.eta);
  check_given(kOp, "beta", call.beta);
  check_given(kOp, "S", call.S);
  MDN_CHECK((call.mu != nullptr) == (call.M != nullptr),
            "momentum_delta_rule: mu is {} while M is {}; a step without momentum has neither",
            call.mu ? "given" : "missing", call.M ? "given" : "missing");
  check_given(kOp, "o", call.o);
}

void check_cu_seqlens(const MomentumDeltaRuleProblem& problem) {
  check_cu_seqlens(kOp, problem);
}

void check_slots(const MomentumDeltaRuleStep& call) {
  check_slots(kOp, call.slots, call.B);
}

}  // namespace mdn::kernels
