// The learning rate over a run, as a factor of its top.
#pragma once

#include <string>

namespace mdn::train {

/// Linear warm-up from 0, then one of
///   cosine    half a cosine from 1 to `floor`
///   wsd       1, then over the last `decay` of the run linearly to `floor`
///   constant  1
/// in any unit of progress: steps, or seconds of a time budget.
struct Schedule {
  enum class Kind { kCosine, kWsd, kConstant };
  Kind kind = Kind::kCosine;
  double total = 1;   // progress at the end of the run
  double warmup = 0;  // progress at the end of the warm-up
  double decay = 0;   // progress that the decay of wsd takes
  double floor = 0;   // factor at the end

  /// `done` in [0, total] is the progress made. Counted in steps, the s-th step (from 1) has the
  /// factor of s, so the step that ends the warm-up has 1 and the last step has `floor`.
  double factor(double done) const;
};

/// "cosine", "wsd", "constant"; throws otherwise.
Schedule::Kind schedule_kind_from_name(const std::string& name);

}  // namespace mdn::train
