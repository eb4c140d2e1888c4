#include "mdn/io/json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/io/file.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST(ParseJson, ErrorsNameFileLineAndColumn) {
  const auto message = [](const char* text) {
    return error_of([&] { parse_json(text, "config.json"); });
  };
  EXPECT_THAT(message("{\n  \"a\": 1,\n  \"b\": }\n"),
              StartsWith("config.json:3:8: not valid JSON"));
  EXPECT_THAT(message(""), StartsWith("config.json:1:1: "));
  EXPECT_THAT(message("{\"a\": 1} x"), StartsWith("config.json:1:10: "));
  EXPECT_THAT(message("{\"a\": 1"), StartsWith("config.json:1:8: "));
  EXPECT_THAT(message("[1, 2"), HasSubstr("not valid JSON"));
  EXPECT_THAT(message("{\"a\": NaN}"), HasSubstr("1:7"));
  EXPECT_THAT(message("// no\n{}"), StartsWith("config.json:1:1: "));
  EXPECT_THAT(message("\"\xff\""), HasSubstr("UTF-8"));
  EXPECT_THAT(message("[1e999]"), HasSubstr("not valid JSON"));
}

TEST(ParseJson, RefusesDuplicateKeysAtEveryDepth) {
  EXPECT_EQ(error_of([] { parse_json(R"({"a": 1, "a": 2})", "f"); }),
            "f: key \"a\" stands twice in one object; once is allowed");
  EXPECT_THAT(error_of([] { parse_json(R"([{"x": {"b": 1, "c": 2, "b": 3}}])", "f"); }),
              HasSubstr("\"b\""));
  EXPECT_NO_THROW(parse_json(R"({"a": {"a": [{"a": 1}, {"a": 2}]}, "b": {"a": 1}})", "f"));
}

TEST(ParseJson, RefusesDeepNesting) {
  const auto nested = [](int depth) {
    return std::string(static_cast<size_t>(depth), '[') +
           std::string(static_cast<size_t>(depth), ']');
  };
  EXPECT_NO_THROW(parse_json(nested(kMaxJsonDepth), "f"));
  EXPECT_THAT(error_of([&] { parse_json(nested(kMaxJsonDepth + 1), "f"); }),
              HasSubstr("deeper than 200"));
  EXPECT_THAT(error_of([&] { parse_json(nested(1000000), "f"); }), HasSubstr("deeper than 200"));
}

TEST(ReadJson, NamesThePath) {
  const ScratchFolder folder;
  write_file_atomically(folder / "x.json", "{");
  EXPECT_THAT(error_of([&] { read_json(folder / "x.json"); }),
              StartsWith((folder / "x.json").string() + ":1:2: "));
}

class JsonObjectTest : public ::testing::Test {
 protected:
  Json json_ = parse_json(R"({
    "heads": 6, "big": 18446744073709551615, "rate": 0.5, "tied": true, "norm": "rms",
    "none": null, "layers": [1, 3], "mixed": [1, "a"], "names": ["x", "y"], "attn": {"window": -1}
  })",
                          "config.json");
  JsonObject object_{json_, "config.json"};
};

TEST_F(JsonObjectTest, GivesValues) {
  EXPECT_EQ(object_.integer("heads"), 6);
  EXPECT_EQ(object_.integer("heads", 6, 6), 6);
  EXPECT_EQ(object_.integer_or("heads", 1), 6);
  EXPECT_EQ(object_.integer_or("missing", 1), 1);
  EXPECT_EQ(object_.integer_or("none", 1), 1);
  EXPECT_EQ(object_.real("rate"), 0.5);
  EXPECT_EQ(object_.real("heads"), 6.0);
  EXPECT_EQ(object_.real_or("none", 0.25), 0.25);
  EXPECT_TRUE(object_.boolean("tied"));
  EXPECT_TRUE(object_.boolean_or("missing", true));
  EXPECT_EQ(object_.string("norm", {"layer", "rms"}), "rms");
  EXPECT_EQ(object_.string_or("missing", "x"), "x");
  EXPECT_EQ(object_.integers("layers"), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(object_.strings("names"), (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(object_.object("attn").integer("window"), -1);
  EXPECT_TRUE(object_.has("heads"));
  EXPECT_FALSE(object_.has("none"));
  EXPECT_FALSE(object_.has("missing"));
}

TEST_F(JsonObjectTest, ErrorsNameKeyValueAndWhatIsAllowed) {
  const auto message = [&](auto&& get) { return error_of([&] { get(); }); };
  EXPECT_EQ(message([&] { object_.integer("missing", 1); }),
            "config.json: key \"missing\" is missing; it must be an integer >= 1");
  EXPECT_EQ(message([&] { object_.integer("heads", 7, 9); }),
            "config.json: \"heads\" is 6; it must be an integer in [7, 9]");
  EXPECT_EQ(message([&] { object_.integer("rate"); }),
            "config.json: \"rate\" is 0.5; it must be an integer");
  EXPECT_THAT(message([&] { object_.integer("big"); }), HasSubstr("18446744073709551615"));
  EXPECT_EQ(message([&] { object_.real("rate", 0, 0.25); }),
            "config.json: \"rate\" is 0.5; it must be a number in [0, 0.25]");
  EXPECT_EQ(message([&] { object_.boolean("heads"); }),
            "config.json: \"heads\" is 6; it must be true or false");
  EXPECT_EQ(message([&] {
              object_.string("norm", {"layer", "batch"});
            }),
            "config.json: \"norm\" is \"rms\"; it must be one of \"layer\", \"batch\"");
  EXPECT_EQ(message([&] { object_.string_or("tied", "x"); }),
            "config.json: \"tied\" is true; it must be a string");
  EXPECT_EQ(message([&] { object_.integers("mixed"); }),
            "config.json: \"mixed\" holds \"a\"; each entry must be an integer");
  EXPECT_EQ(message([&] { object_.strings("mixed"); }),
            "config.json: \"mixed\" holds 1; each entry must be a string");
  EXPECT_EQ(message([&] { object_.object("layers"); }),
            "config.json: \"layers\" is an array of 2 entries; it must be an object");
  EXPECT_EQ(message([&] { object_.array("none"); }),
            "config.json: \"none\" is null; it must be an array");
  EXPECT_EQ(message([&] { object_.object("attn").integer("window", 0); }),
            "config.json: attn: \"window\" is -1; it must be an integer >= 0");
  EXPECT_EQ(message([&] {
              object_.object("attn").check_keys({"size", "bias"});
            }),
            "config.json: attn: unknown key \"window\" (value -1); known are: size, bias");
  EXPECT_NO_THROW(object_.object("attn").check_keys({"window", "bias"}));
  EXPECT_THAT(message([&] { JsonObject(json_["layers"], "f"); }), HasSubstr("object is needed"));
}

TEST(BriefJson, IsShort) {
  EXPECT_EQ(brief_json("a\"b"), "\"a\\\"b\"");
  EXPECT_EQ(brief_json(Json::array({1, 2})), "an array of 2 entries");
  EXPECT_LE(brief_json(std::string(10000, 'x')).size(), 90u);
  EXPECT_NO_THROW(brief_json("\xff"));
}

}  // namespace
}  // namespace mdn
