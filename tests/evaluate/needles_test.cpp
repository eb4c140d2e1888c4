#include "mdn/evaluate/needles.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::string kEssay =
    "It was a long road. Nobody knew where it went! Some said \"to the sea.\" Others kept quiet.\n"
    "The inn at the corner was old, and its keeper older (he said so himself). What of it?";

NeedleTask task(const std::string& text, const std::string& essay = kEssay) {
  static const ByteTokenizer bytes;
  return NeedleTask(TaskSpec::parse(text), bytes, essay);
}

std::string as_text(const std::vector<int64_t>& ids) {
  return {ids.begin(), ids.end()};
}

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

// The values as the targets spell them, by the places of the example.
std::vector<std::string> asked(const NeedleExample& example) {
  std::string targets;
  for (const int64_t target : example.sequence.targets) {
    if (target != kIgnoredTarget) {
      targets += static_cast<char>(target);
    }
  }
  std::vector<std::string> values;
  for (const auto& [first, last] : example.values) {
    values.push_back(targets.substr(first, last - first));
  }
  return values;
}

TEST(Needles, Sentences) {
  EXPECT_THAT(split_sentences(kEssay),
              ElementsAre("It was a long road.", "Nobody knew where it went!",
                          "Some said \"to the sea.\"", "Others kept quiet.",
                          "The inn at the corner was old, and its keeper older (he said so "
                          "himself).",
                          "What of it?"));
  EXPECT_THAT(split_sentences("3.14 is no end"), ElementsAre("3.14 is no end"));
  EXPECT_TRUE(split_sentences("").empty());
}

TEST(Needles, SingleInNoise) {
  const NeedleText text = task("niah_single_1:length=2000").text(Random(1, 2, 3), 4);
  EXPECT_THAT(text.prompt,
              testing::StartsWith("A special magic number is hidden within the following text. "
                                  "Make sure to memorize it. I will quiz you about the number "
                                  "afterwards.\n"));
  EXPECT_EQ(count(text.prompt, "The grass is green. The sky is blue."), 4U);
  ASSERT_EQ(text.values.size(), 1U);
  EXPECT_EQ(text.values[0].size(), 7U);
  EXPECT_EQ(count(text.prompt, "One of the special magic numbers for "), 1U);
  EXPECT_EQ(count(text.prompt, " is: " + text.values[0] + "."), 1U);
  EXPECT_THAT(text.prompt, testing::MatchesRegex(".*\nWhat is the special magic number for "
                                                 "([a-z]+-[a-z]+) mentioned in the provided text. "
                                                 "The special magic number for ([a-z]+-[a-z]+) "
                                                 "mentioned in the provided text is"));
}

TEST(Needles, OtherForms) {
  const NeedleText uuid = task("niah_single_3:length=4000").text(Random(1, 2, 3), 40);
  EXPECT_THAT(uuid.values[0],
              testing::MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-"
                                    "[0-9a-f]{12}"));
  const NeedleText keys = task("niah_multikey_1:length=4000").text(Random(1, 2, 3), 40);
  EXPECT_EQ(count(keys.prompt, "One of the special magic numbers for "), 4U);
  EXPECT_EQ(keys.values.size(), 1U);
  const NeedleText needles = task("niah_multikey_3:length=4000").text(Random(1, 2, 3), 6);
  EXPECT_EQ(count(needles.prompt, "One of the special magic uuids for "), 7U);
  EXPECT_EQ(count(needles.prompt, needles.values[0]), 1U);
  const NeedleText values = task("niah_multivalue:length=4000").text(Random(1, 2, 3), 40);
  EXPECT_EQ(std::set<std::string>(values.values.begin(), values.values.end()).size(), 4U);
  EXPECT_THAT(values.prompt, HasSubstr("What are all the special magic numbers for "));
  // In the order of the text.
  size_t last = 0;
  for (const std::string& value : values.values) {
    const size_t at = values.prompt.find(" is: " + value + ".");
    EXPECT_NE(at, std::string::npos);
    EXPECT_GT(at, last);
    last = at;
  }
}

// Values are asked for in the order in which the question names their keys.
TEST(Needles, MultiQuery) {
  const NeedleText text = task("niah_multiquery:length=4000").text(Random(4, 2, 3), 60);
  ASSERT_EQ(text.values.size(), 4U);
  size_t last = text.prompt.rfind("What are all the special magic numbers for ");
  ASSERT_NE(last, std::string::npos);
  for (const std::string& value : text.values) {
    const size_t end = text.prompt.find(" is: " + value + ".");
    ASSERT_NE(end, std::string::npos);
    const size_t begin = text.prompt.rfind(' ', end - 1) + 1;
    const size_t named = text.prompt.find(text.prompt.substr(begin, end - begin), last);
    ASSERT_NE(named, std::string::npos);
    last = named;
  }
}

TEST(Needles, ExamplesFitAndAskForTheValues) {
  for (const std::string& name : NeedleTask::names()) {
    const NeedleTask needles = task(name + ":length=1800");
    for (int64_t index = 0; index < 5; ++index) {
      const NeedleExample example = needles.example(7, Purpose::kEvaluate, index);
      EXPECT_LT(example.sequence.inputs.size(), 1800U) << name;
      EXPECT_GT(example.sequence.inputs.size(), 1500U) << name;  // and the haystack fills it
      ASSERT_EQ(example.sequence.inputs.size(), example.sequence.targets.size());
      const std::string text = as_text(example.sequence.inputs);
      for (const std::string& value : asked(example)) {
        EXPECT_EQ(value[0], ' ');
        EXPECT_THAT(text, HasSubstr("is: " + value.substr(1) + ".")) << name;
      }
      // A target is the token after its input.
      for (size_t i = 0; i + 1 < example.sequence.inputs.size(); ++i) {
        if (example.sequence.targets[i] != kIgnoredTarget) {
          EXPECT_EQ(example.sequence.targets[i], example.sequence.inputs[i + 1]);
        }
      }
      EXPECT_NE(example.sequence.targets.back(), kIgnoredTarget);
      const NeedleExample again = needles.example(7, Purpose::kEvaluate, index);
      EXPECT_EQ(again.sequence.inputs, example.sequence.inputs);
    }
  }
}

TEST(Needles, Errors) {
  EXPECT_THAT(error_of([] { task("niah_single_2:length=4000", ""); }), HasSubstr("text=FILE"));
  EXPECT_THAT(error_of([] { task("niah_single_1:length=100"); }),
              HasSubstr("the shortest example has"));
  EXPECT_THAT(error_of([] { task("niah_single_9"); }), HasSubstr("niah_multiquery"));
}

}  // namespace
}  // namespace mdn::evaluate
