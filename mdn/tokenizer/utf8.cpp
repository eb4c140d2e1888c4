#include "mdn/tokenizer/utf8.h"

#include <algorithm>

namespace mdn {
namespace {

uint8_t byte_at(std::string_view text, size_t i) {
  return static_cast<uint8_t>(text[i]);
}

/// What the first byte promises: the length, and the bounds of the second byte, which exclude
/// overlong forms, surrogates and what is above U+10FFFF. Length 0: it begins no character.
struct Lead {
  uint8_t length;
  uint8_t second_low;
  uint8_t second_high;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) {
    return {1, 0, 0};
  }
  if (byte < 0xC2 || byte > 0xF4) {
    return {0, 0, 0};
  }
  if (byte < 0xE0) {
    return {2, 0x80, 0xBF};
  }
  if (byte < 0xF0) {
    return {3, static_cast<uint8_t>(byte == 0xE0 ? 0xA0 : 0x80),
            static_cast<uint8_t>(byte == 0xED ? 0x9F : 0xBF)};
  }
  return {4, static_cast<uint8_t>(byte == 0xF0 ? 0x90 : 0x80),
          static_cast<uint8_t>(byte == 0xF4 ? 0x8F : 0xBF)};
}

/// How many of the bytes fit the lead, from the first on.
size_t fitting_bytes(std::string_view text, const Lead& lead) {
  size_t i = 1;
  for (; i < lead.length && i < text.size(); ++i) {
    const uint8_t low = i == 1 ? lead.second_low : 0x80;
    const uint8_t high = i == 1 ? lead.second_high : 0xBF;
    if (byte_at(text, i) < low || byte_at(text, i) > high) {
      break;
    }
  }
  return i;
}

}  // namespace

size_t utf8_length(std::string_view text) {
  if (text.empty()) {
    return 0;
  }
  const Lead lead = lead_of(byte_at(text, 0));
  return lead.length <= 1 || fitting_bytes(text, lead) == lead.length ? lead.length : 0;
}

char32_t utf8_decode(std::string_view text) {
  const uint8_t first = byte_at(text, 0);
  if (first < 0x80) {
    return first;
  }
  const size_t length = lead_of(first).length;
  char32_t character = first & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    character = (character << 6) | (byte_at(text, i) & 0x3Fu);
  }
  return character;
}

void utf8_append(std::string& text, char32_t character) {
  const auto put = [&text](char32_t byte) { text += static_cast<char>(byte); };
  if (character < 0x80) {
    put(character);
  } else if (character < 0x800) {
    put(0xC0 | (character >> 6));
    put(0x80 | (character & 0x3F));
  } else if (character < 0x10000) {
    put(0xE0 | (character >> 12));
    put(0x80 | ((character >> 6) & 0x3F));
    put(0x80 | (character & 0x3F));
  } else {
    put(0xF0 | (character >> 18));
    put(0x80 | ((character >> 12) & 0x3F));
    put(0x80 | ((character >> 6) & 0x3F));
    put(0x80 | (character & 0x3F));
  }
}

bool utf8_is_incomplete(std::string_view text) {
  if (text.empty()) {
    return false;
  }
  const Lead lead = lead_of(byte_at(text, 0));
  return text.size() < lead.length && fitting_bytes(text, lead) == text.size();
}

size_t utf8_incomplete_tail(std::string_view text) {
  for (size_t length = std::min<size_t>(3, text.size()); length > 0; --length) {
    if (utf8_is_incomplete(text.substr(text.size() - length))) {
      return length;
    }
  }
  return 0;
}

std::vector<Utf8Run> utf8_runs(std::string_view text) {
  std::vector<Utf8Run> runs;
  size_t begin = 0;
  bool valid = true;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text.substr(i, 4));
    if ((length > 0) != valid || i == 0) {
      if (i > begin) {
        runs.push_back({text.substr(begin, i - begin), valid});
      }
      begin = i;
      valid = length > 0;
    }
    i += std::max<size_t>(length, 1);
  }
  if (begin < text.size()) {
    runs.push_back({text.substr(begin), valid});
  }
  return runs;
}

std::string utf8_replace_invalid(std::string_view text) {
  std::string result;
  for (const Utf8Run& run : utf8_runs(text)) {
    if (run.valid) {
      result += run.text;
    } else {
      for (size_t i = 0; i < run.text.size(); ++i) {
        result += "\xEF\xBF\xBD";
      }
    }
  }
  return result;
}

bool is_white_space(char32_t character) {
  switch (character) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (character >= 0x09 && character <= 0x0D) ||
             (character >= 0x2000 && character <= 0x200A);
  }
}

}  // namespace mdn
