// Seconds since a moment, for what a subcommand says of its own time.
#pragma once

#include <chrono>

namespace mdn::app {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace mdn::app
