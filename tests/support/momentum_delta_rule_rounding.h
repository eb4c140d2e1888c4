// What rounding does to a case of momentum_delta_rule: the chunkwise formulas in float64 with a
// random relative error at every place where a backend rounds. Tolerances rest on it
// (docs/numerics.md).
#pragma once

#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {

/// Where an algorithm rounds, and how much.
struct Rounding {
  double unit = 0;  // of every addition and product: 2^-24 for float32; 0: none
  double operands =
      0;               // of what a product of matrices reads, unless it is an input: 0: not rounded
  int64_t chunk = 64;  // tokens of a chunk; 1 is the definition, token by token
  bool gradients = true;  // else outputs and final states alone
};

/// All results of a case by the formulas of docs/math/momentum_delta_rule.md, sections 2 to 4, with
/// errors uniform in ±unit and ±operands drawn by `seed`. Without errors these are the reference's
/// results by another road. With rounded operands the triangular system is solved by its inverse,
/// as matrix units have it; else by forward substitution.
Results run_with_rounding(const MomentumDeltaRuleData& data, const Rounding& rounding,
                          uint64_t seed);

}  // namespace mdn::test
