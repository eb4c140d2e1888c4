#include "mdn/generate/stop_strings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "mdn/core/error.h"

namespace mdn::generate {
namespace {

using Pieces = std::vector<std::string>;

// All that comes out when the pieces are pushed, and the text ends.
std::string run(StopStrings stops, const Pieces& pieces) {
  std::string out;
  for (const std::string& piece : pieces) {
    out += stops.push(piece);
  }
  return out + stops.flush();
}

TEST(StopStrings, NoStringsPassTextThroughAtOnce) {
  StopStrings stops;
  EXPECT_EQ(stops.push("ab"), "ab");
  EXPECT_EQ(stops.push(""), "");
  EXPECT_EQ(stops.flush(), "");
  EXPECT_FALSE(stops.stopped());
}

TEST(StopStrings, EndsBeforeTheStringAndStaysEnded) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.push("one END two"), "one ");
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.matched(), "END");
  EXPECT_EQ(stops.push("more"), "");
  EXPECT_EQ(stops.flush(), "");
}

TEST(StopStrings, HoldsBackOnlyWhatMayBecomeAStop) {
  StopStrings stops({"END"});
  EXPECT_EQ(stops.push("the E"), "the ");
  EXPECT_EQ(stops.push("N"), "");
  EXPECT_EQ(stops.push("E"), "EN");  // "ENE": the last E may begin anew
  EXPECT_EQ(stops.push("ND!"), "");
  EXPECT_TRUE(stops.stopped());
}

TEST(StopStrings, FlushGivesTheHeldBack) {
  EXPECT_EQ(run(StopStrings({"\n\n"}), {"line", "\n"}), "line\n");
}

TEST(StopStrings, SelfOverlappingStrings) {
  EXPECT_EQ(run(StopStrings({"aab"}), {"a", "a", "a", "b", "c"}), "a");
  EXPECT_EQ(run(StopStrings({"abab"}), {"ab", "aab", "ab"}), "aba");
}

TEST(StopStrings, TheStringCompleteFirstWins) {
  EXPECT_EQ(run(StopStrings({"abcd", "bc"}), {"xabcd"}), "xa");
  EXPECT_EQ(run(StopStrings({"abcd", "bc"}), {"x", "a", "b", "c", "d"}), "xa");
  // both end at the same byte: the longest
  EXPECT_EQ(run(StopStrings({"c", "abc"}), {"xab", "c"}), "x");
}

TEST(StopStrings, WholeCharactersComeOut) {
  // "é" is c3 a9, "è" c3 a8; the stop begins with the same lead byte.
  EXPECT_EQ(run(StopStrings({"é"}), {"è", "x", "é"}), "èx");
}

TEST(StopStrings, EmptyStringIsAnError) {
  EXPECT_THROW(StopStrings({"a", ""}), Error);
}

// A slow definition: grow the text byte by byte; the first moment some string is a suffix ends it.
std::string slow(const Pieces& strings, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& s : strings) {
      if (std::string_view(text).substr(0, end).ends_with(s)) {
        longest = std::max(longest, s.size());
      }
    }
    if (longest > 0) {
      return text.substr(0, end - longest);
    }
  }
  return text;
}

TEST(StopStrings, AnyCutEqualsSlowForm) {
  std::mt19937 random(1);
  const auto word = [&](size_t longest) {
    std::string out;
    for (size_t n = 1 + random() % longest; n > 0; --n) {
      out += static_cast<char>('a' + random() % 2);
    }
    return out;
  };
  for (int repeat = 0; repeat < 5000; ++repeat) {
    Pieces strings, pieces;
    for (size_t n = 1 + random() % 3; n > 0; --n) {
      strings.push_back(word(6));
    }
    std::string text;
    for (size_t n = random() % 8; n > 0; --n) {
      pieces.push_back(word(5));
      text += pieces.back();
    }
    ASSERT_EQ(run(StopStrings(strings), pieces), slow(strings, text))
        << text << " / " << testing::PrintToString(strings);
  }
}

}  // namespace
}  // namespace mdn::generate
