#include "mdn/generate/stop_strings.h"

#include <algorithm>

#include "mdn/core/error.h"

namespace mdn::generate {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const std::string& s : strings_) {
    MDN_CHECK(!s.empty(), "a stop string is empty; every text contains it");
  }
}

// Where the longest suffix of pending_ begins that a stop string begins with.
size_t StopStrings::held_from() const {
  size_t from = pending_.size();
  for (const std::string& s : strings_) {
    const size_t longest = std::min(s.size() - 1, pending_.size());
    for (size_t length = longest; length > pending_.size() - from; --length) {
      if (std::string_view(pending_).ends_with(std::string_view(s).substr(0, length))) {
        from = pending_.size() - length;
        break;
      }
    }
  }
  return from;
}

std::string StopStrings::push(std::string_view piece) {
  if (stopped_) {
    return {};
  }
  pending_ += piece;
  size_t start = std::string::npos, end = std::string::npos;
  for (const std::string& s : strings_) {
    const size_t at = pending_.find(s);
    if (at == std::string::npos) {
      continue;
    }
    const size_t ends = at + s.size();
    if (end == std::string::npos || ends < end || (ends == end && at < start)) {
      start = at;
      end = ends;
      matched_ = s;
    }
  }
  if (end != std::string::npos) {
    stopped_ = true;
    std::string out = pending_.substr(0, start);
    pending_.clear();
    return out;
  }
  const size_t from = held_from();
  std::string out = pending_.substr(0, from);
  pending_.erase(0, from);
  return out;
}

std::string StopStrings::flush() {
  std::string out;
  out.swap(pending_);
  return out;
}

}  // namespace mdn::generate
