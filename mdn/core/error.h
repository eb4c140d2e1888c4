// Errors: one exception type that says where, what was wrong, the value, and what is allowed.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>
#include <string>

namespace mdn {

/// Every failure the library reports. `what()` is a sentence for the person at the keyboard; the
/// source position is kept apart so that a command line can leave it out.
class Error : public std::runtime_error {
 public:
  Error(const char* file, int line, const std::string& message)
      : std::runtime_error(message), file_(file), line_(line) {}
  const char* file() const { return file_; }
  int line() const { return line_; }

 private:
  const char* file_;
  int line_;
};

}  // namespace mdn

/// Throws mdn::Error with a fmt-formatted message.
#define MDN_THROW(...) throw ::mdn::Error(__FILE__, __LINE__, ::fmt::format(__VA_ARGS__))

/// Checks a condition that bad input can violate; the message names the value and what is allowed.
#define MDN_CHECK(condition, ...) \
  do {                            \
    if (!(condition)) {           \
      MDN_THROW(__VA_ARGS__);     \
    }                             \
  } while (false)
