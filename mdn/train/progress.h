// What a run shows while it works: one line that renews itself on a terminal, plain lines in a file
// or pipe.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>

namespace mdn::train {

struct ProgressState {
  double done = 0;  // of the run, in [0, 1]
  int64_t step = 0;
  std::optional<int64_t> max_steps;
  double loss = 0;  // smoothed
  std::optional<double> held_out;
  double tokens_per_second = 0;
  double seconds_left = 0;
};

/// "1:05", "12:05", "3:04:05"
std::string duration_text(double seconds);
/// "940", "41.2k", "1.25M"
std::string rate_text(double value);
/// "[######------]  step 350/2000  loss 2.101  held-out 2.054  41.2k tokens/s  1:23 left"
std::string progress_line(const ProgressState& state, bool bar);

class Progress {
 public:
  explicit Progress(std::FILE* stream = stdout);
  ~Progress();

  /// Shows the state: on a terminal at most ten times a second, elsewhere when `line` is true.
  void update(const ProgressState& state, bool line);
  /// A message of its own, above the renewed line.
  void say(const std::string& message);

 private:
  void clear();

  std::FILE* stream_;
  bool terminal_;
  bool shown_ = false;  // a renewed line stands on the terminal
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace mdn::train
