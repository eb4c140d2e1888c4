// What every backend checks before it touches memory.
#include "mdn/kernels/kimi_delta_rule.h"

#include "mdn/kernels/check.h"

namespace mdn::kernels {
namespace {

constexpr const char* kOp = "kimi_delta_rule";

void check_call(const KimiDeltaRuleProblem& p, const KimiDeltaRuleInputs& x,
                const void* workspace) {
  check_problem(kOp, p);
  check_size(kOp, "alpha", {p.B, p.T, p.HV, p.K});
  check_given(kOp, "q", x.q);
  check_given(kOp, "k", x.k);
  check_given(kOp, "v", x.v);
  check_given(kOp, "alpha", x.alpha);
  check_given(kOp, "beta", x.beta);
  check_given(kOp, "workspace", workspace);
}

}  // namespace

void check(const KimiDeltaRuleForward& call) {
  check_call(call.problem, call.inputs, call.workspace);
  check_given(kOp, "o", call.o);
}

void check(const KimiDeltaRuleBackward& call) {
  check_call(call.problem, call.inputs, call.workspace);
  check_given(kOp, "d_o", call.d_o);
  check_given(kOp, "d_q", call.d_q);
  check_given(kOp, "d_k", call.d_k);
  check_given(kOp, "d_v", call.d_v);
  check_given(kOp, "d_alpha", call.d_alpha);
  check_given(kOp, "d_beta", call.d_beta);
}

void check(const KimiDeltaRuleStep& call) {
  check_step(kOp, call.B, call.H, call.HV, call.K, call.V, call.scale);
  check_given(kOp, "q", call.q);
  check_given(kOp, "k", call.k);
  check_given(kOp, "v", call.v);
  check_given(kOp, "alpha", call.alpha);
  check_given(kOp, "beta", call.beta);
  check_given(kOp, "S", call.S);
  check_given(kOp, "o", call.o);
}

}  // namespace mdn::kernels
