#include "mdn/evaluate/text.h"

#include <utf8proc.h>

#include <algorithm>

#include "mdn/tokenizer/utf8.h"

namespace mdn::evaluate {
namespace {

/// Bytes of the character that begins `text`; 1 for a byte that begins none.
size_t step(std::string_view text) {
  return std::max<size_t>(utf8_length(text), 1);
}

/// 0 when the first byte begins no character.
char32_t first_character(std::string_view text) {
  return utf8_length(text) == 0 ? char32_t{0} : utf8_decode(text);
}

/// Calls visit(character or 0, its bytes) from left to right.
template <class Visit>
void each_character(std::string_view text, Visit visit) {
  while (!text.empty()) {
    const size_t bytes = step(text);
    visit(first_character(text), text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
}

}  // namespace

bool is_python_space(char32_t character) {
  return is_white_space(character) || (character >= 0x1c && character <= 0x1f);
}

std::string_view strip_left(std::string_view text) {
  while (!text.empty() && is_python_space(first_character(text))) {
    text.remove_prefix(step(text));
  }
  return text;
}

std::string_view strip_right(std::string_view text) {
  size_t kept = 0, at = 0;
  each_character(text, [&](char32_t character, std::string_view bytes) {
    at += bytes.size();
    if (!is_python_space(character)) {
      kept = at;
    }
  });
  return text.substr(0, kept);
}

std::string_view strip(std::string_view text) {
  return strip_right(strip_left(text));
}

int64_t count_words(std::string_view text) {
  int64_t words = 1;
  bool in_space = false;
  each_character(text, [&](char32_t character, std::string_view) {
    const bool space = is_python_space(character);
    words += space && !in_space ? 1 : 0;
    in_space = space;
  });
  return words;
}

int64_t count_characters(std::string_view text) {
  int64_t characters = 0;
  each_character(text, [&](char32_t, std::string_view) { ++characters; });
  return characters;
}

std::string capitalize(std::string_view text) {
  std::string out;
  each_character(text, [&](char32_t character, std::string_view bytes) {
    if (character == 0) {
      out += bytes;
    } else if (out.empty()) {
      utf8_append(out, static_cast<char32_t>(utf8proc_totitle(static_cast<int32_t>(character))));
    } else {
      utf8_append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<int32_t>(character))));
    }
  });
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t at = 0;
  for (size_t found = text.find(from); found != std::string_view::npos;
       found = text.find(from, at)) {
    out += text.substr(at, found - at);
    out += to;
    at = found + from.size();
  }
  return out += text.substr(at);
}

std::string remove_brackets(std::string_view text) {
  std::string out;
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = text[at] == '[' ? text.find_first_of("]\n", at) : std::string_view::npos;
    if (end != std::string_view::npos && text[end] == ']') {
      at = end + 1;
    } else {
      out += text[at++];
    }
  }
  return out;
}

}  // namespace mdn::evaluate
