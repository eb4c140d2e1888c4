// Strings as Python treats them, because the public definitions of tasks rest on it: what is white
// space, what a word, how `capitalize` works. Text is UTF-8; a byte that is part of no character
// counts as a character that has no case and is no space.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mdn::evaluate {

/// str.isspace of one character: Unicode white space and U+001C to U+001F.
bool is_python_space(char32_t character);

std::string_view strip_left(std::string_view text);
std::string_view strip_right(std::string_view text);
std::string_view strip(std::string_view text);

/// len(re.split(r"\s+", text)): runs of white space plus one, so at least 1.
int64_t count_words(std::string_view text);

/// len(text): characters, not bytes.
int64_t count_characters(std::string_view text);

/// str.capitalize: the first character in title case, all others in lower case. One character
/// stays one: "ß" and the final sigma, which Python treats apart, are not.
std::string capitalize(std::string_view text);

std::string replace_all(std::string_view text, std::string_view from, std::string_view to);

/// re.sub(r"\[.*?\]", "", text): from each "[" to the next "]" of the same line.
std::string remove_brackets(std::string_view text);

}  // namespace mdn::evaluate
