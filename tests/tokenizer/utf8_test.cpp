#include "mdn/tokenizer/utf8.h"

#include <gtest/gtest.h>

#include <random>

#include "mdn/tokenizer/byte_alphabet.h"

namespace mdn {
namespace {

bool is_scalar(uint32_t c) {
  return c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
}

TEST(Utf8, EveryCharacterRoundTrips) {
  for (uint32_t c = 0; c <= 0x10FFFF; ++c) {
    std::string text;
    utf8_append(text, c);
    if (is_scalar(c)) {
      ASSERT_EQ(utf8_length(text), text.size()) << c;
      ASSERT_EQ(utf8_decode(text), c);
      for (size_t size = 1; size < text.size(); ++size) {
        ASSERT_EQ(utf8_length(std::string_view(text).substr(0, size)), 0u) << c;
        ASSERT_TRUE(utf8_is_incomplete(std::string_view(text).substr(0, size))) << c;
      }
      ASSERT_FALSE(utf8_is_incomplete(text)) << c;
    } else {
      ASSERT_EQ(utf8_length(text), 0u) << c;
      ASSERT_FALSE(utf8_is_incomplete(text)) << c;
    }
  }
}

/// By brute force: a string of up to 3 bytes is well formed only if it is some character's form.
TEST(Utf8, AcceptsNothingElse) {
  size_t accepted = 0;
  for (uint32_t bytes = 0; bytes < 0x1000000; ++bytes) {
    const char text[3] = {static_cast<char>(bytes >> 16), static_cast<char>(bytes >> 8),
                          static_cast<char>(bytes)};
    const std::string_view view(text, 3);
    if (utf8_length(view) == 3) {
      ++accepted;
      std::string again;
      utf8_append(again, utf8_decode(view));
      ASSERT_EQ(again, view);
    }
  }
  EXPECT_EQ(accepted, 0x10000u - 0x800u - 0x800u);  // U+0800 to U+FFFF without surrogates
  for (const char* bad : {"\xC0\x80", "\xF0\x8F\xBF\xBF", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
                          "\xFF", "\x80", "\xED\xA0\x80", "\xE0\x9F\xBF"}) {
    EXPECT_EQ(utf8_length(bad), 0u);
  }
}

TEST(Utf8, RunsAlternateAndCoverTheText) {
  std::mt19937 rng(3);
  const std::string parts[] = {"a", "é", "中", "😀", "\xFF", "\xE4\xB8", "\x80", "\xF0\x9F\x98"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (unsigned n = rng() % 12; n > 0; --n) {
      text += parts[rng() % std::size(parts)];
    }
    std::string joined;
    const std::vector<Utf8Run> runs = utf8_runs(text);
    for (size_t r = 0; r < runs.size(); ++r) {
      EXPECT_FALSE(runs[r].text.empty());
      EXPECT_TRUE(r == 0 || runs[r].valid != runs[r - 1].valid);
      for (size_t at = 0; at < runs[r].text.size();) {
        const size_t length = utf8_length(runs[r].text.substr(at));
        EXPECT_EQ(length > 0, runs[r].valid);
        at += length > 0 ? length : 1;
      }
      joined += runs[r].text;
    }
    EXPECT_EQ(joined, text);
  }
  EXPECT_TRUE(utf8_runs("").empty());
}

TEST(Utf8, ReplacesEachInvalidByte) {
  EXPECT_EQ(utf8_replace_invalid("a\xFF\xE4\xB8z"), "a\uFFFD\uFFFD\uFFFDz");
  EXPECT_EQ(utf8_replace_invalid("grün 😀"), "grün 😀");
}

TEST(Utf8, IncompleteTail) {
  EXPECT_EQ(utf8_incomplete_tail("abc"), 0u);
  EXPECT_EQ(utf8_incomplete_tail(""), 0u);
  EXPECT_EQ(utf8_incomplete_tail("a\xC3"), 1u);
  EXPECT_EQ(utf8_incomplete_tail("é"), 0u);
  EXPECT_EQ(utf8_incomplete_tail("x\xF0\x9F\x98"), 3u);
  EXPECT_EQ(utf8_incomplete_tail("x\xF0\x9F"), 2u);
  EXPECT_EQ(utf8_incomplete_tail("\xED\xA0"), 0u);  // would be a surrogate
  EXPECT_EQ(utf8_incomplete_tail("\x80\x80"), 0u);
}

TEST(ByteAlphabet, IsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    all += static_cast<char>(byte);
  }
  const std::string text = to_alphabet(all);
  EXPECT_EQ(from_alphabet(text), all);
  EXPECT_EQ(utf8_runs(text).size(), 1u);
  EXPECT_EQ(to_alphabet(" a\n"), "ĠaĊ");
  EXPECT_EQ(from_alphabet("a b"), std::nullopt);     // the space itself is not in it
  EXPECT_EQ(from_alphabet("\u0144"), std::nullopt);  // one past the last
  EXPECT_EQ(from_alphabet("\u0143"), "\xAD");
  EXPECT_EQ(from_alphabet("\xFF"), std::nullopt);
}

}  // namespace
}  // namespace mdn
