// Cases of kimi_delta_rule: one list for the tests of the chunkwise program and of the CUDA
// kernels, and for the kernels, which know no tensors, the inputs of a case and its reference.
// Results and comparison are those of momentum_delta_rule_cases.h.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "mdn/kernels/kimi_delta_rule.h"
#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {

/// Ranges that log decays are drawn from.
enum class Decay {
  kMild,      // -0.1 to 0
  kLayer,     // -5 to 0
  kNone,      // 0
  kMinus20,   // -20
  kMinus200,  // -200: 0 in float32
  kAll,       // -infinity
  kMixed,     // 0, -1e-3, -20, -200, -infinity, channel by channel and token by token
};

struct KimiDeltaRuleCase {
  const char* name;
  int64_t B = 1, T = 1, H = 1, HV = 1, K = 16, V = 16;
  std::vector<int64_t> bounds = {};  // of packed sequences; empty: none
  Decay decay = Decay::kLayer;
  bool states = true;  // an initial state is given
  bool l2norm = false;
  double key_cosine = 0;  // mean cosine between keys
  double beta = 1;        // the largest

  int64_t sequences() const { return bounds.empty() ? B : static_cast<int64_t>(bounds.size()) - 1; }
};

/// Small cases that reach every branch of the chunkwise forms.
const std::vector<KimiDeltaRuleCase>& kimi_delta_rule_cases();

/// Inputs of a case, and the gradients that come in: numbers of `dtype`, gates and states of the
/// gate type.
struct KimiDeltaRuleData {
  KimiDeltaRuleCase c;
  double scale = 1;
  std::vector<double> q, k, v, alpha, beta;
  std::vector<double> S;  // empty: none
  std::vector<double> d_o, d_S;

  KimiDeltaRuleData(const KimiDeltaRuleCase& c, DType dtype, uint64_t seed = 1);

  kernels::KimiDeltaRuleProblem problem(DType dtype) const;
};

/// o, final_S, d_q, d_k, d_v, d_alpha, d_beta and, with an initial state, d_initial_S, in float64.
Results run_kimi_reference(const KimiDeltaRuleData& data);

/// Largest relative errors of a backend that rounds operands of products to `dtype`, a 16-bit type:
/// one rounding of the result's type, and twice the answer of the results to such inputs of
/// products (q, k, v, states and incoming gradients) off by that rounding; in float16 besides as
/// much as its smallest number in every number (docs/numerics.md).
std::vector<std::pair<std::string, double>> kimi_tolerances(const KimiDeltaRuleData& data,
                                                            DType dtype, const Results& reference);

}  // namespace mdn::test
