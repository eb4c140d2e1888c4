#include "mdn/tokenizer/byte_alphabet.h"

#include <array>

#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

constexpr char32_t kMoved = 0x100;  // where the unprintable bytes begin
constexpr size_t kMovedCount = 68;

constexpr bool is_printable(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
}

struct Tables {
  std::array<char32_t, 256> character = {};
  std::array<uint8_t, kMovedCount> moved = {};
};

constexpr Tables make_tables() {
  Tables tables;
  size_t count = 0;
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (is_printable(byte)) {
      tables.character[byte] = byte;
    } else {
      tables.character[byte] = kMoved + static_cast<char32_t>(count);
      tables.moved[count++] = static_cast<uint8_t>(byte);
    }
  }
  return tables;
}
constexpr Tables kTables = make_tables();

}  // namespace

char32_t alphabet_character(uint8_t byte) {
  return kTables.character[byte];
}

std::string to_alphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    utf8_append(text, alphabet_character(static_cast<uint8_t>(byte)));
  }
  return text;
}

std::optional<std::string> from_alphabet(std::string_view text) {
  std::string bytes;
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) {
      return std::nullopt;
    }
    const char32_t character = utf8_decode(text);
    if (character < kMoved && is_printable(static_cast<unsigned>(character))) {
      bytes += static_cast<char>(character);
    } else if (character >= kMoved && character < kMoved + kMovedCount) {
      bytes += static_cast<char>(kTables.moved[character - kMoved]);
    } else {
      return std::nullopt;
    }
    text.remove_prefix(length);
  }
  return bytes;
}

}  // namespace mdn
