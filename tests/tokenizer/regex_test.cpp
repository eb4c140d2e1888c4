#include "mdn/tokenizer/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/tokenizer/regex_translation.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> matches(std::string_view pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  Regex::Matcher matcher(regex, text);
  std::vector<std::string> found;
  size_t begin = 0;
  size_t end = 0;
  while (matcher.next(begin, end)) {
    found.emplace_back(text.substr(begin, end - begin));
  }
  return found;
}

TEST(Regex, FollowsOnigurumaWherePcre2Differs) {
  EXPECT_THAT(matches(R"(\s)", "a\u180e\u0085b\u00a0"), ElementsAre("\u0085", "\u00a0"));
  EXPECT_THAT(matches(R"([^\s])", "\u180e\u3000"), ElementsAre("\u180e"));
  EXPECT_THAT(matches(R"(a{2}+)", "aaaaa"), ElementsAre("aaaa"));  // repeats, not possessive
  EXPECT_THAT(matches(R"(a{1,3}+b)", "aaaaab"), ElementsAre("aaaaab"));
  EXPECT_THAT(matches(R"(a{,2}b)", "aaab"), ElementsAre("aab"));
  EXPECT_THAT(matches(R"(^.$)", "a\nb\ncd"), ElementsAre("a", "b"));  // lines
  EXPECT_THAT(matches(R"(\h+)", "xbeefx"), ElementsAre("beef"));      // hexadecimal digits
  EXPECT_THAT(matches(R"(\p{^L})", "a1"), ElementsAre("1"));
  EXPECT_THAT(matches(R"(a++a)", "aaa"), IsEmpty());
  EXPECT_THAT(matches(R"(x{)", "x{"), ElementsAre("x{"));
  EXPECT_THAT(matches(R"([]a])", "a]"), ElementsAre("a", "]"));
  EXPECT_THAT(matches(R"([^\P{L}a]+)", "abc1"), ElementsAre("bc"));
  EXPECT_THAT(matches(R"([\S\n]+)", "a\nb c"), ElementsAre("a\nb", "c"));
  EXPECT_THAT(matches(R"(\p{Han}+)", "中、\U00031350々"), ElementsAre("中", "\U00031350々"));
}

TEST(Regex, KnowsCharactersOfUnicode16) {
  EXPECT_THAT(matches(R"(\p{L})", "\U00031350\u1c89"), ElementsAre("\U00031350", "\u1c89"));
  EXPECT_THAT(matches(R"(\p{Nd})", "\U00010d40"), ElementsAre("\U00010d40"));
  EXPECT_THAT(matches(R"([^\p{L}\p{N}])", "\U00031350"), IsEmpty());
}

TEST(Regex, EmptyMatchesMoveOn) {
  EXPECT_THAT(matches("x*", "axb"), ElementsAre("", "x", ""));
  EXPECT_THAT(matches("", "é"), ElementsAre("", ""));
  EXPECT_THAT(matches("a", ""), IsEmpty());
}

TEST(Regex, UnsupportedConstructsAreNamed) {
  const auto message = [](const char* pattern) {
    return error_of([&] { Regex(pattern, "f: pre_tokenizer"); });
  };
  EXPECT_EQ(
      message("[a&&b]"),
      "f: pre_tokenizer: && in a class near byte 2 of the pattern \"[a&&b]\" is not supported");
  EXPECT_THAT(message("[a[bc]]"), HasSubstr("a class within a class"));
  EXPECT_THAT(message("[[:alpha:]]"), HasSubstr("a class within a class"));
  EXPECT_THAT(message(R"(\p{Klingon})"),
              HasSubstr("the property \\p{Klingon} is not supported; supported are"));
  EXPECT_THAT(message(R"(\p{C})"), HasSubstr("not supported"));
  EXPECT_THAT(message(R"((a)\1)"), HasSubstr("\\1"));
  EXPECT_THAT(message(R"(\R)"), HasSubstr("\\R"));
  EXPECT_THAT(message(R"(\K)"), HasSubstr("\\K"));
  EXPECT_THAT(message("(?m).*"), HasSubstr("this kind of group"));
  EXPECT_THAT(message("a(?i)b"), HasSubstr("(?i) that is not at the start"));
  EXPECT_THAT(message("a{2}?"), HasSubstr("{n}?"));
  EXPECT_THAT(message("*a"), HasSubstr("a quantifier with nothing to repeat"));
  EXPECT_THAT(message("(a"), HasSubstr("a group is not closed"));
  EXPECT_THAT(message("a)"), HasSubstr("a ')' without its '('"));
  EXPECT_THAT(message("[a"), HasSubstr("an unfinished class"));
  EXPECT_THAT(message("[b-a]"), HasSubstr("runs backwards"));
  EXPECT_THAT(message("\\"), HasSubstr("unfinished escape"));
  EXPECT_THAT(message("\xFF"), HasSubstr("not UTF-8"));
  EXPECT_THAT(message("(?<=a*)b"), HasSubstr("does not compile: lookbehind"));
  EXPECT_THAT(message("(*ANYCRLF)a"), HasSubstr("(*"));
  EXPECT_THAT(error_of([] { Regex(std::string(100000, 'a'), "f"); }), HasSubstr("at most 65536"));
}

TEST(Regex, RunawayPatternsEnd) {
  const std::string text(100, 'a');
  EXPECT_THAT(error_of([&] { matches("(a|a)*(a|a)*[bc]", text); }), HasSubstr("limit"));
  // Deep, and within the limits: the small machine stack is exchanged for a larger one.
  EXPECT_EQ(matches("(ab|c)*d", std::string(20000, 'c') + "d").size(), 1u);
}

TEST(EscapeRegex, MatchesTheTextItself) {
  const std::string text = "a.b*c[d](e){2}|\\Q^$+?-#& \n\té中";
  EXPECT_THAT(matches(escape_regex(text), "x" + text + text), ElementsAre(text, text));
}

}  // namespace
}  // namespace mdn
