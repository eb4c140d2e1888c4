#include "mdn/train/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

namespace mdn::train {

std::string duration_text(double seconds) {
  if (!std::isfinite(seconds) || seconds > 1e9) {
    return "?";
  }
  const auto s = static_cast<int64_t>(std::max(seconds, 0.0) + 0.5);
  if (s >= 3600) {
    return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  }
  return fmt::format("{}:{:02}", s / 60, s % 60);
}

std::string rate_text(double value) {
  if (value >= 1e6) {
    return fmt::format("{:.2f}M", value / 1e6);
  }
  return value >= 1e3 ? fmt::format("{:.1f}k", value / 1e3) : fmt::format("{:.0f}", value);
}

std::string progress_line(const ProgressState& state, bool bar) {
  std::string line;
  if (bar) {
    constexpr int kCells = 20;
    const int full = static_cast<int>(std::clamp(state.done, 0.0, 1.0) * kCells);
    line = fmt::format("[{:#<{}}{:-<{}}]  ", "", full, "", kCells - full);
  }
  line += fmt::format("step {}", state.step);
  if (state.max_steps) {
    line += fmt::format("/{}", *state.max_steps);
  }
  line += fmt::format("  loss {:.4f}", state.loss);
  if (state.held_out) {
    line += fmt::format("  held-out {:.4f}", *state.held_out);
  }
  return line + fmt::format("  {} tokens/s  {} left", rate_text(state.tokens_per_second),
                            duration_text(state.seconds_left));
}

Progress::Progress(std::FILE* stream)
    : stream_(stream), terminal_(::isatty(::fileno(stream)) == 1) {}

Progress::~Progress() {
  if (shown_) {
    std::fputc('\n', stream_);
    std::fflush(stream_);
  }
}

void Progress::update(const ProgressState& state, bool line) {
  if (!terminal_) {
    if (line) {
      say(progress_line(state, false));
    }
    return;
  }
  const auto now = std::chrono::steady_clock::now();
  if (shown_ && now - last_ < std::chrono::milliseconds(100)) {
    return;
  }
  last_ = now;
  // \r to the line's start; \x1b[K clears what a longer line before it left
  fmt::print(stream_, "\r{}\x1b[K", progress_line(state, true));
  std::fflush(stream_);
  shown_ = true;
}

void Progress::say(const std::string& message) {
  clear();
  fmt::print(stream_, "{}\n", message);
  std::fflush(stream_);
}

void Progress::clear() {
  if (shown_) {
    std::fputs("\r\x1b[K", stream_);
    shown_ = false;
  }
}

}  // namespace mdn::train
