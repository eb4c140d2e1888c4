#include "mdn/evaluate/questions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/io/file.h"
#include "tests/evaluate/fixtures.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::HasSubstr;

const QuestionTask& task(const std::string& name) {
  for (const QuestionTask& task : question_tasks()) {
    if (name == task.name) {
      return task;
    }
  }
  throw std::runtime_error("no task " + name);
}

void expect_requests(const std::string& name, const QuestionFile& file) {
  const Json& want = expected().at("tasks").at(name).at("requests");
  ASSERT_EQ(file.questions.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(Json(file.questions[i].requests), want[i]) << name << " question " << i;
  }
}

class OfHarness : public testing::TestWithParam<const char*> {};

TEST_P(OfHarness, SameRequests) {
  const std::string name = GetParam();
  expect_requests(name, read_questions(task(name), data_file(name + ".jsonl"), "", 0));
}

// The same log-likelihoods give the same metrics and standard errors.
TEST_P(OfHarness, SameMetrics) {
  const std::string name = GetParam();
  const QuestionFile file = read_questions(task(name), data_file(name + ".jsonl"), "", 0);
  for (const Json& round : expected().at("tasks").at(name).at("rounds")) {
    std::vector<std::vector<Answer>> answers;
    for (const Json& question : round.at("answers")) {
      auto& answer = answers.emplace_back();
      for (const Json& pair : question) {
        answer.push_back({pair[0].get<double>(), pair[1].get<bool>()});
      }
    }
    const auto metrics = question_metrics(task(name), file.questions, answers);
    const Json& want = round.at("metrics");
    EXPECT_EQ(metrics.size(), want.size());
    for (const Metric& metric : metrics) {
      const double value = want.at(metric.name).at("value").get<double>();
      const double error = want.at(metric.name).at("stderr").get<double>();
      EXPECT_NEAR(metric.value, value, 1e-14 * std::abs(value)) << name << " " << metric.name;
      // The bootstrap's 100,000 terms: its rounding is a random walk of 2^-53 each, about 1e-14;
      // Python 3.12 and later sum more exactly.
      EXPECT_NEAR(*metric.standard_error, error, 1e-12 * std::abs(error))
          << name << " " << metric.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tasks, OfHarness,
                         testing::Values("hellaswag", "piqa", "arc_easy", "openbookqa",
                                         "winogrande", "boolq", "sciq", "lambada"),
                         [](const auto& tested) { return std::string(tested.param); });

TEST(Questions, NormalisationsDiffer) {
  // Otherwise the comparison above would not tell them apart.
  bool acc_norm = false, acc_bytes = false;
  for (const char* name : {"hellaswag", "piqa", "arc_easy"}) {
    for (const Json& round : expected().at("tasks").at(name).at("rounds")) {
      const Json& metrics = round.at("metrics");
      acc_norm |= metrics.at("acc") != metrics.at("acc_norm");
      acc_bytes |= metrics.at("acc_norm") != metrics.at("acc_bytes");
    }
  }
  EXPECT_TRUE(acc_norm);
  EXPECT_TRUE(acc_bytes);
}

TEST(Questions, FilesAsPublished) {
  for (const char* name : {"arc_easy", "openbookqa", "boolq", "hellaswag"}) {
    const std::string file = std::string(name) + "_original.jsonl";
    const QuestionFile original = read_questions(task(name), data_file(file), "", 0);
    const QuestionFile copy =
        read_questions(task(name), data_file(std::string(name) + ".jsonl"), "", 0);
    expect_requests(name, original);
    for (size_t i = 0; i < copy.questions.size(); ++i) {
      EXPECT_EQ(original.questions[i].gold, copy.questions[i].gold) << name << " " << i;
    }
  }
  const QuestionFile piqa = read_questions(task("piqa"), data_file("piqa_original.jsonl"),
                                           data_file("piqa_labels.lst"), 0);
  expect_requests("piqa", piqa);
  EXPECT_EQ(piqa.questions[0].gold, 0);
  EXPECT_EQ(piqa.questions[1].gold, 1);
}

TEST(Questions, LimitAndPlaces) {
  const QuestionFile file = read_questions(task("lambada"), data_file("lambada.jsonl"), "", 2);
  ASSERT_EQ(file.questions.size(), 2U);
  EXPECT_THAT(file.questions[1].place, testing::EndsWith("lambada.jsonl:2"));
  EXPECT_EQ(file.sha256.size(), 64U);
}

class BadQuestions : public testing::Test {
 protected:
  std::string error(const char* name, const std::string& text, const std::string& labels = "") {
    const auto path = folder_ / "q.jsonl";
    write_file_atomically(path, text);
    std::filesystem::path labels_path;
    if (!labels.empty()) {
      labels_path = folder_ / "labels.lst";
      write_file_atomically(labels_path, labels);
    }
    return error_of([&] { read_questions(task(name), path, labels_path, 0); });
  }
  ScratchFolder folder_;
};

TEST_F(BadQuestions, NameFileAndLine) {
  const std::string good = R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 1})"
                           "\n\n";
  EXPECT_THAT(error("piqa", good + "{\"goal\": \"g\""), HasSubstr("q.jsonl:3"));
  EXPECT_THAT(error("piqa", good + "[1]"), HasSubstr("q.jsonl:3: no JSON object"));
  // A field of another name: which is missing, and which a line has.
  const std::string renamed =
      error("piqa", R"({"question": "g", "sol1": "a", "sol2": "b", "label": 1})");
  EXPECT_THAT(renamed, HasSubstr("q.jsonl:1"));
  EXPECT_THAT(renamed, HasSubstr("goal"));
  EXPECT_THAT(renamed, HasSubstr("goal, sol1, sol2, label"));
  EXPECT_THAT(error("piqa", R"({"goal": "", "sol1": "a", "sol2": "b", "label": 1})"),
              HasSubstr("not empty"));
  EXPECT_THAT(error("piqa", ""), HasSubstr("no questions"));
}

TEST_F(BadQuestions, LabelsOutsideTheChoices) {
  EXPECT_THAT(error("piqa", R"({"goal": "g", "sol1": "a", "sol2": "b", "label": 2})"),
              HasSubstr("label"));
  EXPECT_THAT(error("piqa", R"({"goal": "g", "sol1": "a", "sol2": "b", "label": "-1"})"),
              HasSubstr("from 0 to 1"));
  const std::string hellaswag = R"({"activity_label": "x", "ctx_a": "a", "ctx_b": "b", )"
                                R"("endings": ["c", "d", "e"], "label": "3"})";
  EXPECT_THAT(error("hellaswag", hellaswag), HasSubstr("from 0 to 2"));
  EXPECT_THAT(error("winogrande",
                    R"({"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "0"})"),
              HasSubstr("from 1 to 2"));
  const std::string arc = R"({"question": "q", "choices": {"text": ["x", "y"], )"
                          R"("label": ["A", "B"]}, "answerKey": "E"})";
  EXPECT_THAT(error("arc_easy", arc), testing::AllOf(HasSubstr("q.jsonl:1"), HasSubstr("A, B")));
  EXPECT_THAT(error("piqa", R"({"goal": "g", "sol1": "a", "sol2": "b"})", "7\n"),
              HasSubstr("\"7\""));
  const std::string line = R"({"goal": "g", "sol1": "a", "sol2": "b"})";
  EXPECT_THAT(error("piqa", line + "\n" + line, "1\n"), HasSubstr("has 1 labels"));
  EXPECT_THAT(error("piqa", line, "1\n0\n\n"), HasSubstr("2 labels for the 1 questions"));
}

TEST_F(BadQuestions, TextsThatCannotBeAsked) {
  EXPECT_THAT(
      error("winogrande", R"({"sentence": "a b", "option1": "x", "option2": "y", "answer": "1"})"),
      HasSubstr("gap"));
  EXPECT_THAT(error("lambada", R"({"text": "ends with a space "})"), HasSubstr("space"));
  const std::string markup = R"({"activity_label": "x", "ctx_a": "a", "ctx_b": "b", )"
                             R"("endings": ["[step]", "d"], "label": "1"})";
  EXPECT_THAT(error("hellaswag", markup), HasSubstr("choice 0 is empty"));
  const std::string uneven = R"({"question": "q", "choices": {"text": ["x", "y"], )"
                             R"("label": ["A"]}, "answerKey": "A"})";
  EXPECT_THAT(error("arc_easy", uneven), HasSubstr("choices"));
}

}  // namespace
}  // namespace mdn::evaluate
