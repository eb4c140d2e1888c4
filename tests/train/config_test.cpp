#include "mdn/train/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

using testing::HasSubstr;

constexpr const char* kMinimal =
    R"({"model": {"model_type": "momentum_deltanet"}, "data": "d", "out": "o", "max_steps": 10})";

std::string with(const std::string& more) {
  std::string text = kMinimal;
  text.back() = ',';
  return text + more + "}";
}

std::string error_of(const std::string& text, const Overrides& overrides = {}) {
  try {
    parse_train_config(text, "run.json", overrides);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(TrainConfig, DefaultsAndGivenValues) {
  const TrainConfig c = parse_train_config(
      with(R"("learning_rate": 0.003, "eval_length": 64, "warmup_steps": 2, "order": "windows")"),
      "run.json");
  EXPECT_EQ(c.data, "d");
  EXPECT_EQ(c.max_steps, 10);
  EXPECT_FALSE(c.max_seconds);
  EXPECT_DOUBLE_EQ(c.learning_rate, 0.003);
  EXPECT_EQ(c.evaluation_length(), 64);
  EXPECT_EQ(c.evaluation_rows(), c.rows);
  EXPECT_EQ(c.order, "windows");
  EXPECT_DOUBLE_EQ(c.beta2, 0.95);
  EXPECT_THAT(c.model, HasSubstr("momentum_deltanet"));
}

TEST(TrainConfig, FlagsOverrideKeys) {
  const TrainConfig c = parse_train_config(with(R"("warmup_steps": 2)"), "run.json",
                                           {{"learning_rate", "1e-2"},
                                            {"warmup_steps", "null"},
                                            {"out", "7"},
                                            {"separate_documents", "false"},
                                            {"max_steps", "20"}});
  EXPECT_DOUBLE_EQ(c.learning_rate, 0.01);
  EXPECT_FALSE(c.warmup_steps);
  EXPECT_EQ(c.out, "7");  // a string key takes its text as it is
  EXPECT_FALSE(c.separate_documents);
  EXPECT_EQ(c.max_steps, 20);
}

TEST(TrainConfig, ErrorsNameKeyValueAndWhatIsAllowed) {
  EXPECT_THAT(error_of(with(R"("lerning_rate": 1)")),
              testing::AllOf(HasSubstr("'lerning_rate'"), HasSubstr("learning_rate, beta1")));
  EXPECT_THAT(error_of(with(R"("rows": 0)")),
              testing::AllOf(HasSubstr("rows"), HasSubstr("0"), HasSubstr("[1")));
  EXPECT_THAT(error_of(with(R"("schedule": "linear")")),
              testing::AllOf(HasSubstr("linear"), HasSubstr("cosine, wsd, constant")));
  EXPECT_THAT(error_of(with(R"("beta1": 1.0)")), HasSubstr("beta1"));
  EXPECT_THAT(error_of(kMinimal, {{"rows", "many"}}), HasSubstr("many"));
  EXPECT_THAT(error_of(kMinimal, {{"rowz", "1"}}), HasSubstr("rowz"));
  EXPECT_THAT(error_of(R"({"data": "d", "out": "o", "max_steps": 1})"), HasSubstr("\"model\""));
}

TEST(TrainConfig, ContradictionsAreErrors) {
  EXPECT_THAT(error_of(with(R"("max_steps": null)")), HasSubstr("run.json"));  // a key twice
  EXPECT_THAT(error_of(kMinimal, {{"max_steps", "null"}}), HasSubstr("max_seconds"));
  EXPECT_THAT(error_of(with(R"("warmup_steps": 1, "warmup_fraction": 0.1)")),
              HasSubstr("warmup_fraction"));
  EXPECT_THAT(error_of(with(R"("warmup_steps": 11)")), HasSubstr("warmup_steps"));
  EXPECT_THAT(error_of(with(R"("warmup_steps": 1, "max_seconds": 5)")), HasSubstr("max_seconds"));
  EXPECT_THAT(error_of(with(R"("schedule": "wsd", "warmup_fraction": 0.5, "decay_fraction": 0.6)")),
              HasSubstr("overlap"));
}

TEST(TrainConfig, ModelPathIsRelativeToTheFile) {
  const Scratch scratch;
  write_file_atomically(scratch / "m.json", R"({"model_type": "momentum_deltanet"})");
  write_file_atomically(scratch / "run.json",
                        R"({"model": "m.json", "data": "d", "out": "o", "max_seconds": 5})");
  const TrainConfig c = read_train_config((scratch / "run.json").string());
  EXPECT_EQ(c.model, R"({"model_type": "momentum_deltanet"})");
  EXPECT_EQ(c.max_seconds, 5.0);
}

TEST(TrainConfig, JsonOfAConfigReadsBackTheSame) {
  const TrainConfig c = parse_train_config(
      with(R"("eps": 1e-9, "max_seconds": 2.5, "data_seed": 3, "threads": 2)"), "run.json");
  OrderedJson json = to_json(c);
  json["model"] = Json::parse(c.model);
  EXPECT_EQ(to_json(parse_train_config(json.dump(), "again.json")), to_json(c));
}

TEST(TrainConfig, EveryKeyIsDocumented) {
  const std::string page = read_file(std::filesystem::path(MDN_DOCS) / "training.md");
  for (const ConfigKey& key : config_keys()) {
    EXPECT_THAT(page, HasSubstr(fmt::format("| `{}` |", key.name)));
  }
}

TEST(TrainConfig, ShippedConfigsAreValid) {
  int found = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(std::filesystem::path(MDN_CONFIGS))) {
    if (entry.path().filename().string().starts_with("train")) {
      EXPECT_NO_THROW(read_train_config(entry.path().string())) << entry.path();
      ++found;
    }
  }
  EXPECT_GE(found, 1);
}

}  // namespace
}  // namespace mdn::train
