// What every backend checks before it touches memory.
#include "mdn/kernels/momentum_delta_rule.h"

#include <cmath>
#include <limits>

#include "mdn/core/error.h"

namespace mdn::kernels {
namespace {

/// Checks that `name` is at least 1.
void check_positive(const char* name, int64_t value) {
  MDN_CHECK(value >= 1, "momentum_delta_rule: {} is {}; it must be at least 1", name, value);
}

void check_heads(int64_t H, int64_t HV) {
  MDN_CHECK(HV % H == 0,
            "momentum_delta_rule: {} value heads over {} query/key heads; the number of value "
            "heads must be a multiple of the number of query/key heads",
            HV, H);
}

/// Checks that a tensor's size in bytes fits a signed 64-bit offset.
void check_size(const char* name, std::initializer_list<int64_t> sizes) {
  int64_t bytes = 8;  // the widest element
  for (int64_t size : sizes) {
    MDN_CHECK(size <= std::numeric_limits<int64_t>::max() / bytes,
              "momentum_delta_rule: {} of the shape asked for passes 2^63 bytes", name);
    bytes *= size;
  }
}

void check_scale(double scale) {
  MDN_CHECK(std::isfinite(scale), "momentum_delta_rule: scale is {}; it must be finite", scale);
}

void check_given(const char* name, const void* pointer) {
  MDN_CHECK(pointer != nullptr, "momentum_delta_rule: {} is missing (a null pointer)", name);
}

void check_problem(const MomentumDeltaRuleProblem& p) {
  check_positive("B", p.B);
  check_positive("T", p.T);
  check_positive("H", p.H);
  check_positive("HV", p.HV);
  check_positive("K", p.K);
  check_positive("V", p.V);
  check_positive("N", p.N);
  check_heads(p.H, p.HV);
  check_scale(p.scale);
  if (p.cu_seqlens != nullptr) {
    MDN_CHECK(p.B == 1, "momentum_delta_rule: packed sequences with B = {}; they need B = 1", p.B);
  } else {
    MDN_CHECK(p.N == p.B,
              "momentum_delta_rule: N is {} and B is {}; without cu_seqlens every batch row is one "
              "sequence, so they must be equal",
              p.N, p.B);
  }
  check_size("q", {p.B, p.T, p.H, p.K});
  check_size("v", {p.B, p.T, p.HV, p.V});
  check_size("S", {p.N, p.HV, p.V, p.K});
}

void check_inputs(const MomentumDeltaRuleInputs& x) {
  check_given("q", x.q);
  check_given("k", x.k);
  check_given("v", x.v);
  check_given("alpha", x.alpha);
  check_given("mu", x.mu);
  check_given("eta", x.eta);
  check_given("beta", x.beta);
}

}  // namespace

void check(const MomentumDeltaRuleForward& call) {
  check_problem(call.problem);
  check_inputs(call.inputs);
  check_given("o", call.o);
}

void check(const MomentumDeltaRuleBackward& call) {
  check_problem(call.problem);
  check_inputs(call.inputs);
  check_given("d_o", call.d_o);
  check_given("d_q", call.d_q);
  check_given("d_k", call.d_k);
  check_given("d_v", call.d_v);
  check_given("d_alpha", call.d_alpha);
  check_given("d_mu", call.d_mu);
  check_given("d_eta", call.d_eta);
  check_given("d_beta", call.d_beta);
  MDN_CHECK((call.d_pi != nullptr) == (call.inputs.pi != nullptr),
            "momentum_delta_rule: d_pi is {} while pi is {}; the gradient goes with its input",
            call.d_pi ? "given" : "missing", call.inputs.pi ? "given" : "missing");
}

void check(const MomentumDeltaRuleStep& call) {
  check_positive("B", call.B);
  check_positive("H", call.H);
  check_positive("HV", call.HV);
  check_positive("K", call.K);
  check_positive("V", call.V);
  check_heads(call.H, call.HV);
  check_scale(call.scale);
  MDN_CHECK(call.state_dtype == DType::kFloat32 || call.state_dtype == DType::kFloat16,
            "momentum_delta_rule: states of {}; they must be float32 (the type of the gates) or "
            "float16",
            name_of(call.state_dtype));
  check_size("S", {call.B, call.HV, call.V, call.K});
  check_given("q", call.q);
  check_given("k", call.k);
  check_given("v", call.v);
  check_given("alpha", call.alpha);
  check_given("mu", call.mu);
  check_given("eta", call.eta);
  check_given("beta", call.beta);
  check_given("S", call.S);
  check_given("M", call.M);
  check_given("o", call.o);
}

void check_cu_seqlens(const MomentumDeltaRuleProblem& p) {
  if (p.cu_seqlens == nullptr) {
    return;
  }
  MDN_CHECK(p.cu_seqlens[0] == 0, "momentum_delta_rule: cu_seqlens[0] is {}; it must be 0",
            p.cu_seqlens[0]);
  for (int64_t n = 0; n < p.N; ++n) {
    MDN_CHECK(p.cu_seqlens[n] <= p.cu_seqlens[n + 1],
              "momentum_delta_rule: cu_seqlens[{}] = {} is above cu_seqlens[{}] = {}; the values "
              "must not decrease",
              n, p.cu_seqlens[n], n + 1, p.cu_seqlens[n + 1]);
  }
  MDN_CHECK(p.cu_seqlens[p.N] == p.T,
            "momentum_delta_rule: cu_seqlens[{}] = {} but there are {} tokens; the last value must "
            "be their number",
            p.N, p.cu_seqlens[p.N], p.T);
}

void check_slots(const MomentumDeltaRuleStep& call) {
  if (call.slots == nullptr) {
    return;
  }
  for (int64_t b = 1; b < call.B; ++b) {
    bool twice = false;
    for (int64_t other = 0; other < b; ++other) {
      twice |= call.slots[other] == call.slots[b];
    }
    MDN_CHECK(!twice || call.slots[b] < 0,
              "momentum_delta_rule: slot {} is given to two sequences of one step (the second is "
              "sequence {}); every sequence needs its own",
              call.slots[b], b);
  }
}

}  // namespace mdn::kernels
