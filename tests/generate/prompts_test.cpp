#include "mdn/generate/prompts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "mdn/core/error.h"

namespace mdn::generate {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Prompts, ALineEach) {
  const auto prompts = parse_prompts("one\ntwo words\r\n{\"three\n\n", false, "f");
  ASSERT_EQ(prompts.size(), 3u);
  EXPECT_EQ(prompts[0].text, "one");
  EXPECT_EQ(prompts[1].text, "two words");
  EXPECT_EQ(prompts[2].text, "{\"three");
  EXPECT_FALSE(prompts[0].ids || prompts[0].seed || prompts[0].max_tokens);
}

TEST(Prompts, JsonLines) {
  const auto prompts = parse_prompts(
      "{\"prompt\": \"a\\nb\", \"max_tokens\": 3}\n{\"ids\": [1, 2], \"seed\": 9}", true, "f");
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[0].text, "a\nb");
  EXPECT_EQ(prompts[0].max_tokens, 3);
  EXPECT_THAT(prompts[1].ids.value(), ElementsAre(1, 2));
  EXPECT_EQ(prompts[1].seed, 9u);
}

TEST(Prompts, ErrorsNameFileAndLine) {
  const auto lines = [](const char* text, bool jsonl) {
    return message([&] { parse_prompts(text, jsonl, "p.jsonl"); });
  };
  EXPECT_THAT(lines("a\n\nb", false), HasSubstr("p.jsonl, line 2: the line is empty"));
  EXPECT_THAT(lines("\n\n", false), HasSubstr("there is no prompt"));
  EXPECT_THAT(lines("{\"prompt\": \"a\"}\n{\"promt\": 1}", true), HasSubstr("line 2"));
  EXPECT_THAT(lines("{\"promt\": 1}", true), HasSubstr("promt"));
  EXPECT_THAT(lines("{\"prompt\": 1}", true), HasSubstr("prompt"));
  EXPECT_THAT(lines("{\"prompt\": \"a\", \"ids\": [1]}", true), HasSubstr("either"));
  EXPECT_THAT(lines("{}", true), HasSubstr("either"));
  EXPECT_THAT(lines("{\"ids\": [-1]}", true), HasSubstr("ids"));
  EXPECT_THAT(lines("{\"prompt\": \"a\", \"max_tokens\": -1}", true), HasSubstr("max_tokens"));
  EXPECT_THAT(lines("nonsense", true), HasSubstr("line 1"));
  EXPECT_THAT(message([] { read_prompts("/nonexistent/file"); }), HasSubstr("/nonexistent/file"));
}

TEST(Prompts, Ids) {
  EXPECT_THAT(parse_ids("1 2,3, 40"), ElementsAre(1, 2, 3, 40));
  EXPECT_THAT(parse_ids(""), ElementsAre());
  EXPECT_THAT(parse_ids("-5"), ElementsAre(-5));  // the vocabulary check names it later
  for (const char* bad : {"a", "1 x", "1.5", "99999999999999999999"}) {
    EXPECT_THAT(message([&] { parse_ids(bad); }), HasSubstr(bad));
  }
}

TEST(FindModel, TakesTheFolderOrItsNewestStep) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / "find_model";
  fs::remove_all(root);
  const auto model = [&](const char* name) {
    fs::create_directories(root / name);
    std::ofstream(root / name / "config.json") << "{}";
  };
  fs::create_directories(root);
  EXPECT_THAT(message([&] { find_model(root); }), HasSubstr("no model here"));
  EXPECT_THAT(message([&] { find_model(root / "none"); }), HasSubstr("no such folder"));
  model("step-9");
  model("step-10");
  model("step-x");
  fs::create_directories(root / "step-11");  // without a config: a checkpoint cut short
  EXPECT_EQ(find_model(root), root / "step-10");
  model("");
  EXPECT_EQ(find_model(root), root);
  fs::remove_all(root);
}

}  // namespace
}  // namespace mdn::generate
