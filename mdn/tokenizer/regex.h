// The regular expressions of tokenizer.json, run by PCRE2.
//
// Those patterns are written for Oniguruma (Ruby syntax) with Unicode 16, so they are rewritten
// before PCRE2 compiles them:
//   \s \S             the property White_Space (PCRE2's would add U+180E)
//   \d \w \h, \b \B   as Oniguruma defines them
//   \p{L} ...         general categories, and the characters newer than PCRE2's tables added
//   \p{Han} ...       a script itself; PCRE2's is the script's extensions
//   ^ $               at every line
//   {n,m}+            a repeated repetition, where PCRE2 would not give back
// What cannot be rewritten faithfully (class intersections, nested classes, POSIX brackets, inline
// options but i, \R, \X, \K, calls and back-references, \p{C}) is an error that names it.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace mdn {

/// The PCRE2 pattern for an Oniguruma one. `place` opens error messages.
std::string translate_regex(std::string_view pattern, const std::string& place);

/// The pattern that matches `text` and nothing else.
std::string escape_regex(std::string_view text);

/// A compiled pattern. Threads may share it; each uses a Matcher of its own.
class Regex {
 public:
  /// An Oniguruma pattern; see translate_regex.
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
