// UTF-8: what is well formed, and one rule for what is not.
//
// Text given to a tokenizer is bytes. A maximal run of bytes that begin no well-formed character
// (Unicode 15, table 3-7: no surrogates, no overlong forms, nothing above U+10FFFF) is kept apart
// from the characters around it and keeps its bytes exactly.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace mdn {

/// Bytes of the well-formed character at the start of `text`, 1 to 4, or 0 if there is none.
size_t utf8_length(std::string_view text);

/// The character at the start of well-formed, non-empty text.
char32_t utf8_decode(std::string_view text);

void utf8_append(std::string& text, char32_t character);

/// Whether `text` could become a well-formed character if bytes followed: it is a proper, non-empty
/// beginning of one.
bool utf8_is_incomplete(std::string_view text);

/// Bytes at the end of `text` that are an incomplete character, 0 to 3.
size_t utf8_incomplete_tail(std::string_view text);

/// A part of a text that is well formed throughout, or nowhere.
struct Utf8Run {
  std::string_view text;
  bool valid;
};

/// Cuts text into alternating runs. Empty text has none.
std::vector<Utf8Run> utf8_runs(std::string_view text);

/// Text for a terminal or JSON: each byte that is part of no character becomes U+FFFD.
std::string utf8_replace_invalid(std::string_view text);

/// The Unicode property White_Space.
bool is_white_space(char32_t character);

}  // namespace mdn
