#include "mdn/generate/passage_text.h"

#include <gtest/gtest.h>

namespace mdn::generate {
namespace {

std::vector<std::string> pushed(PassageText& text, std::string_view bytes) {
  std::vector<std::string> out;
  for (char c : bytes) {
    out.push_back(text.push(static_cast<unsigned char>(c)));
  }
  return out;
}

TEST(PassageText, ShowsWholeCharactersOnly) {
  const ByteTokenizer bytes;
  PassageText text(bytes, {});
  EXPECT_EQ(pushed(text, "a\xc3\xa9"), (std::vector<std::string>{"a", "", "é"}));
  EXPECT_EQ(pushed(text, "\xf0\x9f\x98\x80"), (std::vector<std::string>{"", "", "", "😀"}));
  EXPECT_EQ(text.finish(), "");
  EXPECT_EQ(text.text(), "aé😀");
}

TEST(PassageText, ReplacesWhatIsNoCharacter) {
  const ByteTokenizer bytes;
  PassageText text(bytes, {});
  pushed(text, "x\xff y\xe2\x82");  // an impossible byte; a beginning that never ends
  EXPECT_EQ(text.text(), "x\uFFFD y");
  EXPECT_EQ(text.finish(), "\uFFFD\uFFFD");
}

TEST(PassageText, StopsAcrossTokensAndInsideCharactersBytes) {
  const ByteTokenizer bytes;
  PassageText text(bytes, {"→!"});
  pushed(text, "a→b→");
  EXPECT_EQ(text.text(), "a→b");  // the last arrow waits
  EXPECT_FALSE(text.stopped());
  pushed(text, "!more");
  EXPECT_TRUE(text.stopped());
  EXPECT_EQ(text.matched(), "→!");
  EXPECT_EQ(text.finish(), "");
  EXPECT_EQ(text.text(), "a→b");
}

TEST(PassageText, FinishShowsWhatWaited) {
  const ByteTokenizer bytes;
  PassageText text(bytes, {"\n\n"});
  pushed(text, "end\n");
  EXPECT_EQ(text.text(), "end");
  EXPECT_EQ(text.finish(), "\n");
}

}  // namespace
}  // namespace mdn::generate
