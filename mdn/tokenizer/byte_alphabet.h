// The byte alphabet of byte-level BPE: files must hold text, so each of the 256 bytes is written as
// a printable character of its own. Printable Latin-1 stands for itself; the other 68 bytes, in
// order, are U+0100 and up ("Ġ" is the space).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace mdn {

/// The character that stands for a byte.
char32_t alphabet_character(uint8_t byte);

/// Bytes as the text that a vocabulary holds.
std::string to_alphabet(std::string_view bytes);

/// The inverse, or nothing if `text` has a character outside the alphabet.
std::optional<std::string> from_alphabet(std::string_view text);

}  // namespace mdn
