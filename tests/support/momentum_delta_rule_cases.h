// Cases of momentum_delta_rule: one list for the tests of every backend and for the benchmarks,
// the inputs of a case, calls on a backend, and comparison against the reference.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "mdn/core/dtype.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::test {

/// Ranges that the gates of a case are drawn from.
enum class Gates {
  kMild,       // alpha 0.7-1, mu 0-1, eta 0-2, beta 0-1
  kLayer,      // as the published layer makes them: alpha <= cos²θ, beta <= sin²θ, mu near 1
  kMaximum,    // alpha 0.9-1, mu 0.5-0.9, eta 2, beta 1
  kSomeZeros,  // kMild with zeros at some tokens, of each gate apart and of all at once
  kAllZero,
  kNoMomentum,    // mu 0: the gated delta rule
  kAlphaMuOne,    // alpha = mu = 1, beta and eta small
  kSlowMomentum,  // mu 0.97-0.999, beta up to 0.1
  kSlowDecay,  // alpha 0.998-1, mu 0.5-0.9, eta 0-1, beta up to 0.3: memory of hundreds of tokens
};

enum class Prediction { kTied, kZero, kOne, kRandom };  // pi; tied: null

struct MomentumDeltaRuleCase {
  std::string name;
  int64_t B = 1, T = 1, H = 1, HV = 1, K = 16, V = 16;
  std::vector<int64_t> lengths = {};  // packed sequences; empty: none
  Gates gates = Gates::kMild;
  Prediction pi = Prediction::kTied;
  bool states = true;         // initial states, and gradients of the final ones
  bool l2norm = false;        // rows of any length, normalised inside
  double key_cosine = 0;      // mean cosine between keys
  double value_scale = 1;     // standard deviation of v
  double state_scale = 0.25;  // of the initial states
  bool momentum = true;       // false: mu and M are not given
};

/// Small cases that reach every branch. Some hundreds of tokens at most.
const std::vector<MomentumDeltaRuleCase>& correctness_cases();

/// Shapes whose speed is reported: the published ones and the demo's.
const std::vector<MomentumDeltaRuleCase>& speed_cases();

std::ostream& operator<<(std::ostream& out, const MomentumDeltaRuleCase& c);

/// A named tensor in float64.
struct Values {
  std::string name;
  std::vector<double> x;
};

/// Inputs of a case, and the gradients that come in. Every number is representable in the type
/// that a backend will read it in.
struct MomentumDeltaRuleData {
  MomentumDeltaRuleCase c;
  int64_t N = 1;
  double scale = 1;
  std::vector<int64_t> cu_seqlens;
  std::vector<double> q, k, v, alpha, mu, eta, beta, pi;  // pi empty: tied
  std::vector<double> S, M;                               // initial; empty: none
  std::vector<double> d_o, d_S, d_M;                      // d_S, d_M empty: none
  // Without momentum mu, M and d_M are empty, and results have no final_M, d_mu and d_M.
  bool wants_initial_gradient = true;

  MomentumDeltaRuleData() = default;
  MomentumDeltaRuleData(const MomentumDeltaRuleCase& c, DType dtype, uint64_t seed = 1);

  kernels::MomentumDeltaRuleProblem problem(DType dtype) const;
  /// The tensors with gradients, by the names that results have: "q", ..., "S", "M".
  std::vector<std::pair<std::string, std::vector<double>*>> tensors();
};

/// Outputs by name: o, final_S, final_M, then d_q, d_k, d_v, d_alpha, d_mu, d_eta, d_beta, d_pi,
/// d_S, d_M where the data asks for them.
using Results = std::vector<Values>;
const std::vector<double>& at(const Results& results, const std::string& name);
bool is_gradient(const std::string& name);

/// Numbers as they lie in memory, and back.
std::vector<unsigned char> encode(const std::vector<double>& values, DType dtype);
std::vector<double> decode(const void* memory, size_t count, DType dtype);

/// Runs a backend on host memory of `dtype`: outputs, workspaces and what is saved start as NaN,
/// and a guard behind each must survive. Another backend's runner copies to its device and back.
using Runner = std::function<Results(const MomentumDeltaRuleData&, DType)>;
Results run_reference(const MomentumDeltaRuleData& data);
Results run_cpu(const MomentumDeltaRuleData& data, DType dtype);

/// ‖x - reference‖ / ‖reference‖ in the 2-norm; what is 0 in the reference must be 0.
double relative_error(const std::vector<double>& x, const std::vector<double>& reference);

/// Largest relative error that a backend may have in each result of `reference`, all or those
/// without gradients (docs/numerics.md): the rounding of the output's type, and what the rounding
/// inside a case can do to the result, as a simulation of the algorithm shows it. `chunks`: tokens
/// that the backend takes at once, 1 for a walk from token to token; several numbers: the largest
/// of what they allow. `rounds_operands`: it rounds operands of its products as the Hopper kernels
/// do, to `dtype`, of 16 bits, and float16.
std::vector<std::pair<std::string, double>> tolerances(const MomentumDeltaRuleData& data,
                                                       DType dtype, const Results& reference,
                                                       const std::vector<int64_t>& chunks = {1, 64},
                                                       bool rounds_operands = false);

/// Compares every result; an empty string, or a line for each that is off.
std::string compare(const Results& results, const Results& reference,
                    const std::vector<std::pair<std::string, double>>& tolerances);

}  // namespace mdn::test
