// The patterns of tokenizer.json are written for Oniguruma (Ruby syntax) with Unicode 16; they are
// rewritten before PCRE2 compiles them:
//   \s \S             the property White_Space (PCRE2's would add U+180E)
//   \d \w \h, \b \B   as Oniguruma defines them
//   \p{L} ...         general categories, and the characters newer than PCRE2's tables added
//   \p{Han} ...       a script itself; PCRE2's is the script's extensions
//   ^ $               at every line
//   {n,m}+            a repeated repetition, where PCRE2 would not give back
// What cannot be rewritten faithfully (class intersections, nested classes, POSIX brackets, inline
// options but i, \R, \X, \K, calls and back-references, \p{C}) is an error that names it.
#pragma once

#include <string>
#include <string_view>

namespace mdn {

/// The PCRE2 pattern for an Oniguruma one. `place` opens error messages.
std::string translate_regex(std::string_view pattern, const std::string& place);

/// The pattern that matches `text` and nothing else.
std::string escape_regex(std::string_view text);

}  // namespace mdn
