#include "mdn/evaluate/evaluate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "mdn/data/prepare.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"
#include "tests/evaluate/fixtures.h"
#include "tests/evaluate/tiny_model.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::HasSubstr;

class Evaluate : public testing::Test {
 protected:
  Result run(const std::string& task, int64_t limit = 0, int64_t seed = 0) {
    const auto specs = parse_tasks(task);
    EXPECT_EQ(specs.size(), 1U);
    samples_.clear();
    Options options;
    options.limit = limit;
    options.seed = seed;
    options.sample = [&](const OrderedJson& sample) { samples_.push_back(sample); };
    return run_task(specs.front(), scorer_, &bytes_, options);
  }
  std::string error(const std::string& task) {
    return error_of([&] { run(task); });
  }
  std::string write(const std::string& name, const std::string& text) {
    write_file_atomically(folder_ / name, text);
    return (folder_ / name).string();
  }
  static double value(const Result& result, const std::string& name) {
    for (const Metric& metric : result.metrics) {
      if (metric.name == name) {
        return metric.value;
      }
    }
    ADD_FAILURE() << "no metric " << name;
    return 0;
  }

  ScratchFolder folder_;
  ByteTokenizer bytes_;
  model::Decoder decoder_ = tiny_decoder(at::kDouble);
  Scorer scorer_{decoder_, at::kCPU, 4096};
  std::vector<OrderedJson> samples_;
};

// A tokenizer of bytes predicts all bytes but the first of each document.
TEST_F(Evaluate, PerplexityOfATextIsItsLossFourWays) {
  const std::string text = "Some words, then\nsome more words. And an end to them\n";
  const Result result = run("perplexity:window=0,file=" + write("a.txt", text));
  Sequence whole;
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    whole.inputs.push_back(static_cast<uint8_t>(text[i]));
    whole.targets.push_back(static_cast<uint8_t>(text[i + 1]));
  }
  const double nats = -scorer_.score(std::vector<Sequence>{whole})[0].log_likelihood();
  const auto tokens = static_cast<double>(text.size() - 1);
  EXPECT_NEAR(value(result, "token_perplexity"), std::exp(nats / tokens), 1e-9);
  EXPECT_NEAR(value(result, "byte_perplexity"), std::exp(nats / tokens), 1e-9);
  EXPECT_NEAR(value(result, "bits_per_byte"), nats / tokens / std::numbers::ln2, 1e-9);
  // 11 words and, as the harness counts, one more after the last line end
  EXPECT_NEAR(std::log(value(result, "word_perplexity")), nats / 12, 1e-9);
  EXPECT_EQ(result.settings.at("sha256"), sha256_hex(text));
  EXPECT_EQ(result.settings.at("predicted").at("words"), 12);
  EXPECT_EQ(result.notes.size(), 1U);
  ASSERT_EQ(samples_.size(), 1U);
  EXPECT_NEAR(samples_[0].at("log_likelihood").get<double>(), -nats, 1e-9);
}

TEST_F(Evaluate, DocumentsCountTogether) {
  const std::string path = write("d.jsonl",
                                 "{\"text\": \"first document\"}\n\n{\"text\": \"the second\"}\n"
                                 "{\"text\": \"a third one that is longer\"}\n");
  const Result all = run("perplexity:window=8,file=" + path);
  EXPECT_EQ(all.samples, 3);
  double sum = 0, tokens = 0;
  for (const OrderedJson& sample : samples_) {
    sum += sample.at("log_likelihood").get<double>();
    tokens += sample.at("tokens").get<double>();
  }
  EXPECT_EQ(tokens, 13 + 9 + 25);
  EXPECT_NEAR(value(all, "token_perplexity"), std::exp(-sum / tokens), 1e-9);
  EXPECT_TRUE(all.metrics[0].standard_error.has_value());
  EXPECT_THAT(samples_[1].at("place").get<std::string>(), testing::EndsWith("d.jsonl:3"));
  EXPECT_EQ(run("perplexity:file=" + path, 2).samples, 2);
  // The hash is of the whole file, also under a limit.
  EXPECT_EQ(run("perplexity:file=" + path, 1).settings.at("sha256"), all.settings.at("sha256"));
}

// With a stride of 1 each token has all the context that the window allows.
TEST_F(Evaluate, WindowsSlide) {
  const std::string text = "abcdefghijklmnopqrstuvwxyz";
  const std::string path = write("a.txt", text);
  run("perplexity:window=6,stride=1,file=" + path);
  const double got = samples_[0].at("log_likelihood").get<double>();
  double want = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    Sequence one;
    for (size_t k = i < 6 ? 0 : i - 6; k < i; ++k) {
      one.inputs.push_back(static_cast<uint8_t>(text[k]));
      one.targets.push_back(kIgnoredTarget);
    }
    one.targets.back() = static_cast<uint8_t>(text[i]);
    want += scorer_.score(std::vector<Sequence>{one})[0].log_likelihood();
  }
  EXPECT_NEAR(got, want, 1e-9);
}

TEST_F(Evaluate, ShardsSayWhatTheirTextSays) {
  const std::string path =
      write("d.jsonl", "{\"text\": \"one document here\"}\n{\"text\": \"and  two\"}\n");
  data::PrepareOptions prepare;
  prepare.sources = {path};
  prepare.output = folder_ / "data";
  prepare.val_fraction = 0;
  data::prepare(bytes_, "bytes", prepare);
  const Result text = run("perplexity:window=8,stride=4,file=" + path);
  const Result shards =
      run("perplexity:window=8,stride=4,split=train,data=" + (folder_ / "data").string());
  ASSERT_EQ(text.metrics.size(), shards.metrics.size());
  for (size_t i = 0; i < text.metrics.size(); ++i) {
    EXPECT_NEAR(text.metrics[i].value, shards.metrics[i].value, 1e-9 * text.metrics[i].value);
  }
  EXPECT_THAT(error("perplexity:data=" + (folder_ / "data").string()), HasSubstr("no documents"));
}

TEST_F(Evaluate, QuestionsAgreeWithTheirSamples) {
  const Result result = run("piqa:file=" + data_file("piqa.jsonl").string());
  ASSERT_EQ(samples_.size(), 3U);
  double right = 0;
  for (const OrderedJson& sample : samples_) {
    const auto lls = sample.at("log_likelihoods").get<std::vector<double>>();
    right += argmax(lls) == sample.at("gold").get<int64_t>() ? 1 : 0;
  }
  EXPECT_NEAR(value(result, "acc"), right / 3, 1e-12);
  EXPECT_EQ(result.samples, 3);
  EXPECT_GT(result.tokens, 100);
  const Result cut = run("piqa:window=30,file=" + data_file("piqa.jsonl").string());
  EXPECT_THAT(cut.notes.at(0), HasSubstr("lost their beginning"));
  EXPECT_THAT(error("piqa:window=3,file=" + data_file("piqa.jsonl").string()),
              testing::AllOf(HasSubstr("piqa.jsonl:1"), HasSubstr("window of 3")));
  EXPECT_EQ(run("lambada:file=" + data_file("lambada.jsonl").string()).metrics[1].name,
            "perplexity");
}

TEST_F(Evaluate, MadeUpTasks) {
  for (const char* task :
       {"mqar:length=32,pairs=4,examples=20", "copy:length=16,examples=20",
        "parity:length=16,examples=20", "s3:length=8,examples=20", "s5:length=8,examples=20"}) {
    const Result result = run(task);
    EXPECT_EQ(result.samples, 20) << task;
    double part = 0, whole = 0;
    for (const OrderedJson& sample : samples_) {
      const auto asked = sample.at("asked").get<double>(), right = sample.at("right").get<double>();
      part += right / asked / 20;
      whole += right == asked ? 0.05 : 0;
    }
    EXPECT_NEAR(value(result, "acc"), part, 1e-12) << task;
    EXPECT_NEAR(value(result, "exact"), whole, 1e-12) << task;
    EXPECT_EQ(result.to_json().at("settings").at("seed"), 0);
  }
  EXPECT_EQ(run("niah_single_1:length=700", 2).samples, 2);
  EXPECT_EQ(samples_[0].at("asked"), 1);
}

TEST_F(Evaluate, ASeedRepeatsAResult) {
  const auto lls = [&](int64_t seed) {
    run("mqar:length=32,pairs=4,examples=3", 0, seed);
    return samples_[2].at("log_likelihood").get<double>();
  };
  EXPECT_EQ(lls(1), lls(1));
  EXPECT_NE(lls(1), lls(2));
}

TEST_F(Evaluate, Errors) {
  EXPECT_THAT(error("perplexity"), HasSubstr("file=FILE or data=FOLDER"));
  EXPECT_THAT(error("perplexity:file=" + write("e.jsonl", "{\"text\": \"x\"}\n{\"text\": \"\"}\n")),
              testing::AllOf(HasSubstr("e.jsonl:2"), HasSubstr("empty")));
  EXPECT_THAT(error("perplexity:file=" + write("f.jsonl", "{\"txt\": \"x\"}\n")),
              testing::AllOf(HasSubstr("f.jsonl:1"), HasSubstr("\"text\"")));
  EXPECT_THAT(error("perplexity:file=" + write("g.txt", "x")), HasSubstr("nothing to predict"));
  EXPECT_THAT(error("perplexity:window=4,stride=5,file=" + write("h.txt", "xy")),
              HasSubstr("must not be larger"));
  EXPECT_THAT(error("perplexity:window=0,stride=5,file=" + write("h.txt", "xy")),
              HasSubstr("whole documents"));
  EXPECT_THAT(error("mqar:vocab=8192"), HasSubstr("the model's vocabulary is 256"));
  EXPECT_THAT(error("hellaswag"), HasSubstr("'file' is missing"));
  EXPECT_THAT(error("niah_single_2:length=900"), HasSubstr("text=FILE"));
  EXPECT_THAT(error_of([&] { run_task(TaskSpec::parse("hellaswag"), scorer_, nullptr, {}); }),
              HasSubstr("tokenizer"));
}

TEST(Table, ShowsMetricsWithErrors) {
  Result result;
  result.task = TaskSpec::parse("s3");
  result.samples = 7;
  result.metrics = {mean_metric("acc", std::vector<double>{0, 1}),
                    {.name = "perplexity",
                     .value = 12.5,
                     .standard_error = std::nullopt,
                     .higher_is_better = false}};
  const std::string text = table({result});
  EXPECT_THAT(text, HasSubstr("0.5000"));
  EXPECT_THAT(text, HasSubstr("12.5000"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
}

}  // namespace
}  // namespace mdn::evaluate
