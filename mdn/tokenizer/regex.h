// The regular expressions of tokenizer.json, run by PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace mdn {

/// A compiled pattern. Threads may share it; each uses a Matcher of its own.
class Regex {
 public:
  /// An Oniguruma pattern, rewritten by regex_translation.h.
  Regex(std::string_view pattern, const std::string& place);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  /// Walks over the matches in a text, left to right without overlap. Empty matches count, except
  /// right after the match before.
  class Matcher {
   public:
    /// `text` must be well-formed UTF-8, and outlive the Matcher, as must the Regex.
    Matcher(const Regex& regex, std::string_view text);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;

    /// Sets [begin, end) in bytes; false when there are no more. Throws when the pattern needs more
    /// steps or memory than the limits allow.
    bool next(size_t& begin, size_t& end);

   private:
    struct State;
    const Regex& regex_;
    std::string_view text_;
    std::unique_ptr<State> state_;
    size_t from_ = 0;
    size_t last_end_ = 0;
    bool matched_ = false;
  };

 private:
  struct Code;
  std::string place_;
  std::unique_ptr<Code> code_;
};

}  // namespace mdn
