// What rounding does to a case of momentum_delta_rule: the chunkwise formulas in float64 with a
// random error at every place where a backend rounds. Tolerances rest on it (docs/numerics.md).
#pragma once

#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {

/// A type that operands of products are rounded to.
struct Format {
  int bits = 0;     // of the significand; 0: they are not rounded
  double step = 0;  // between the numbers below the normal ones
};
Format format_of(DType dtype);

/// Where an algorithm rounds, and how much.
struct Rounding {
  double unit = 0;  // of every addition and product: 2^-24 for float32; 0: none
  // What products of matrices read and is made on the way, as the Hopper kernels round it: to the
  // type of the inputs, or inside a chunk to float16. Both or neither.
  Format inputs = {}, half = {};
  int64_t chunk = 64;     // tokens of a chunk; 1 is the definition, token by token
  bool gradients = true;  // else outputs and final states alone
};

/// All results of a case by the formulas of docs/math/momentum_delta_rule.md, sections 2 to 4, with
/// errors drawn by `seed`: uniform in ±unit, and those of rounding operands to nearest. Without
/// errors these are the reference's results by another road. With rounded operands the triangular
/// system is solved by its inverse, and the backward pass makes the states anew, as the kernels do;
/// else the system is solved by substitution, and the states are made once.
Results run_with_rounding(const MomentumDeltaRuleData& data, const Rounding& rounding,
                          uint64_t seed);

}  // namespace mdn::test
