#include "mdn/evaluate/task_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/evaluate/tasks.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::HasSubstr;

TEST(TaskSpec, NamesAndKeys) {
  const TaskSpec spec = TaskSpec::parse("mqar:pairs=16,length=256");
  EXPECT_EQ(spec.name(), "mqar");
  EXPECT_EQ(spec.integer_or("pairs", 1, 1), 16);
  EXPECT_EQ(spec.integer_or("vocab", 7, 1), 7);
  EXPECT_EQ(spec.text(), "mqar:length=256,pairs=16");
  EXPECT_EQ(TaskSpec::parse("s3").text(), "s3");
}

TEST(TaskSpec, CommasInsideValues) {
  const TaskSpec spec = TaskSpec::parse("perplexity:file=a,b:c.txt,window=4,field=x, y");
  EXPECT_EQ(spec.string("file"), "a,b:c.txt");
  EXPECT_EQ(spec.integer_or("window", 0, 0), 4);
  EXPECT_EQ(spec.string("field"), "x, y");
}

TEST(TaskSpec, Errors) {
  const auto error = [](const std::string& text) { return error_of([&] { parse_tasks(text); }); };
  EXPECT_THAT(error("mqarr"), testing::AllOf(HasSubstr("'mqarr'"), HasSubstr("hellaswag")));
  EXPECT_THAT(error(":a=b"), HasSubstr("NAME"));
  EXPECT_THAT(error("mqar:pairs"), HasSubstr("key=value"));
  EXPECT_THAT(error("mqar:pairs="), HasSubstr("key=value"));
  EXPECT_THAT(error("mqar:pairs=1,pairs=2"), HasSubstr("twice"));
  EXPECT_THAT(error("mqar:pear=1"), testing::AllOf(HasSubstr("'pear'"), HasSubstr("pairs")));
  EXPECT_THAT(error("parity:extrapolate=4"), HasSubstr("length"));
  EXPECT_THAT(error("parity:length=4,extrapolate=0"), HasSubstr("extrapolate"));
  const TaskSpec spec = TaskSpec::parse("mqar:pairs=x,power=2");
  EXPECT_THAT(error_of([&] { spec.integer_or("pairs", 1, 1); }), HasSubstr("'x'"));
  EXPECT_THAT(error_of([&] { spec.real_or("power", 1, 0, 1); }), HasSubstr("from 0 to 1"));
  EXPECT_THAT(error_of([&] { spec.string("file"); }), HasSubstr("'file' is missing"));
}

TEST(Tasks, Extrapolate) {
  std::vector<std::string> texts;
  for (const TaskSpec& spec : parse_tasks("parity:length=64,extrapolate=16")) {
    texts.push_back(spec.text());
  }
  EXPECT_THAT(texts,
              testing::ElementsAre("parity:length=64", "parity:length=128", "parity:length=256",
                                   "parity:length=512", "parity:length=1024"));
  EXPECT_EQ(parse_tasks("perplexity:file=x,window=8,extrapolate=2").back().text(),
            "perplexity:file=x,window=16");
  EXPECT_EQ(parse_tasks("s5").size(), 1U);
}

}  // namespace
}  // namespace mdn::evaluate
