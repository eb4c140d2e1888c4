#include "mdn/evaluate/text.h"

#include <gtest/gtest.h>

#include "tests/evaluate/fixtures.h"

namespace mdn::evaluate {
namespace {

TEST(Text, Capitalize) {
  for (const Json& pair : expected().at("capitalize")) {
    EXPECT_EQ(capitalize(pair[0].get<std::string>()), pair[1].get<std::string>());
  }
  EXPECT_EQ(capitalize("\xffX"), "\xffx");
}

TEST(Text, CountsOfTheHarness) {
  const Json& rolling = expected().at("rolling");
  for (size_t i = 0; i < rolling.at("documents").size(); ++i) {
    const std::string text = rolling.at("documents")[i];
    EXPECT_EQ(count_words(text), rolling.at("words")[i].get<int64_t>()) << text;
    EXPECT_EQ(static_cast<int64_t>(text.size()), rolling.at("bytes")[i].get<int64_t>()) << text;
  }
  EXPECT_EQ(count_characters("é日\xff."), 4);
}

TEST(Text, Strip) {
  EXPECT_EQ(strip(" \t\u00a0a b\u2003\n"), "a b");
  EXPECT_EQ(strip_left("\x1c x "), "x ");
  EXPECT_EQ(strip_right(" x \u200b"), " x \u200b");  // a zero-width space is none
  EXPECT_EQ(strip(" \n"), "");
}

TEST(Text, Brackets) {
  EXPECT_EQ(remove_brackets("a[b]c[]d"), "acd");
  EXPECT_EQ(remove_brackets("[a[b]c]"), "c]");
  EXPECT_EQ(remove_brackets("x[y\nz] [w]"), "x[y\nz] ");
  EXPECT_EQ(remove_brackets("x[y"), "x[y");
}

TEST(Text, ReplaceAll) {
  EXPECT_EQ(replace_all("a   b", "  ", " "), "a  b");  // from left to right, once
  EXPECT_EQ(replace_all("", "a", "b"), "");
}

}  // namespace
}  // namespace mdn::evaluate
