#include "mdn/tokenizer/added_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

AddedToken token(int32_t id, const std::string& content) {
  AddedToken added;
  added.id = id;
  added.content = content;
  return added;
}

/// Pieces as text: "text", or "#id".
std::vector<std::string> split(const AddedTokenMatcher& matcher, std::string_view text,
                               bool ignore_special = false) {
  std::vector<std::string> pieces;
  for (const AddedTokenMatcher::Piece& piece : matcher.split(text, ignore_special)) {
    pieces.push_back(piece.id ? "#" + std::to_string(*piece.id) : std::string(piece.text));
  }
  return pieces;
}

TEST(AddedTokens, LongestFromTheLeft) {
  AddedTokenMatcher matcher;
  matcher.add("ab", token(1, "ab"));
  matcher.add("abcd", token(2, "abcd"));
  matcher.add("bc", token(3, "bc"));
  EXPECT_THAT(split(matcher, "xabcdx"), ElementsAre("x", "#2", "x"));
  EXPECT_THAT(split(matcher, "abcx"), ElementsAre("#1", "cx"));
  EXPECT_THAT(split(matcher, "bcab"), ElementsAre("#3", "#1"));
  EXPECT_THAT(split(matcher, ""), IsEmpty());
  EXPECT_THAT(split(AddedTokenMatcher(), "ab"), ElementsAre("ab"));
}

TEST(AddedTokens, StripTakesWhiteSpaceAlong) {
  AddedTokenMatcher matcher;
  AddedToken left = token(1, "<");
  left.lstrip = true;
  AddedToken right = token(2, ">");
  right.rstrip = true;
  matcher.add("<", left);
  matcher.add(">", right);
  EXPECT_THAT(split(matcher, "a \u3000<  b"), ElementsAre("a", "#1", "  b"));
  EXPECT_THAT(split(matcher, "a >\n\t b"), ElementsAre("a ", "#2", "b"));
  EXPECT_THAT(split(matcher, ">  <"), ElementsAre("#2", "#1"));
}

TEST(AddedTokens, SingleWord) {
  AddedTokenMatcher matcher;
  AddedToken word = token(1, "ab");
  word.single_word = true;
  matcher.add("ab", word);
  EXPECT_THAT(split(matcher, "ab ab-ab"), ElementsAre("#1", " ", "#1", "-", "#1"));
  EXPECT_THAT(split(matcher, "abc"), ElementsAre("abc"));
  EXPECT_THAT(split(matcher, "éab ab_ 1ab"), ElementsAre("éab ab_ 1ab"));
}

TEST(AddedTokens, SpecialMayBeText) {
  AddedTokenMatcher matcher;
  AddedToken special = token(1, "<|end|>");
  special.special = true;
  matcher.add("<|end|>", special);
  matcher.add("end", token(2, "end"));
  EXPECT_THAT(split(matcher, "a<|end|>end"), ElementsAre("a", "#1", "#2"));
  EXPECT_THAT(split(matcher, "a<|end|>end", true), ElementsAre("a<|end|>", "#2"));
}

TEST(AddedTokens, SameTextTwiceIsAnError) {
  AddedTokenMatcher matcher;
  matcher.add("x", token(1, "x"));
  EXPECT_THAT(error_of([&] { matcher.add("x", token(2, "X")); }),
              HasSubstr("added tokens 2 and 1 are the same text"));
}

}  // namespace
}  // namespace mdn
