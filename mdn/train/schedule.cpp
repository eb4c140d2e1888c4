#include "mdn/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "mdn/core/error.h"

namespace mdn::train {

double Schedule::factor(double done) const {
  if (done < warmup) {
    return done / warmup;
  }
  const auto share = [](double part, double whole) {
    return part > 0 ? std::min(part / whole, 1.0) : 0.0;
  };
  switch (kind) {
    case Kind::kCosine: {
      const double x = share(done - warmup, total - warmup);
      return floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * x));
    }
    case Kind::kWsd:
      if (done <= total - decay) {
        return 1;
      }
      return 1 - (1 - floor) * share(done - (total - decay), decay);
    case Kind::kConstant:
      return 1;
  }
  return 1;
}

Schedule::Kind schedule_kind_from_name(const std::string& name) {
  if (name == "cosine") {
    return Schedule::Kind::kCosine;
  }
  if (name == "wsd") {
    return Schedule::Kind::kWsd;
  }
  MDN_CHECK(name == "constant", "schedule '{}' is unknown; allowed: cosine, wsd, constant", name);
  return Schedule::Kind::kConstant;
}

}  // namespace mdn::train
