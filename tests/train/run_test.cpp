#include "mdn/train/run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/safetensors.h"
#include "mdn/train/checkpoint.h"
#include "mdn/train/metrics.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Every file of a checkpoint but trainer.json, which has times, byte for byte.
std::map<std::string, std::string> contents(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint)) {
    if (entry.path().filename() != kTrainerFile) {
      files[entry.path().filename()] = read_file(entry.path());
    }
  }
  return files;
}

std::vector<int64_t> steps_in(const fs::path& out) {
  std::vector<int64_t> steps;
  for (const Checkpoint& c : find_checkpoints(out)) {
    steps.push_back(c.step);
  }
  return steps;
}

// metrics.jsonl without what a clock measured.
std::string timeless_metrics(const fs::path& out) {
  std::string kept;
  std::string text = read_file(out / kMetricsFile);
  for (size_t at = 0, end = 0; (end = text.find('\n', at)) != std::string::npos; at = end + 1) {
    Json line = Json::parse(text.substr(at, end - at));
    line.erase("seconds");
    line.erase("tokens_per_second");
    kept += line.dump() + "\n";
  }
  return kept;
}

// From the newest checkpoint in the run's folder, or from a given one.
RunOptions resuming(const fs::path& from = {}) {
  RunOptions options;
  options.resume = from.empty();
  options.resume_from = from;
  return options;
}

std::string error_of(const TrainConfig& config, const RunOptions& options = {}) {
  try {
    run(config, options);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Run, TenAndTenAreTwentyBitForBit) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  config.max_steps = 20;
  config.log_every = 3;  // so that the checkpoint lies between two lines
  config.checkpoint_every = 10;
  const RunResult straight = run(config, {});
  EXPECT_EQ(straight.step, 20);
  EXPECT_FALSE(straight.stopped);
  EXPECT_THAT(steps_in(config.out), ElementsAre(10, 20));

  // As if the process had died after step 10: later metrics are lines that must go.
  const fs::path first = config.out;
  config.out = (scratch / "resumed").string();
  fs::create_directories(config.out);
  fs::copy(first / checkpoint_name(10), fs::path(config.out) / checkpoint_name(10),
           fs::copy_options::recursive);
  fs::copy(first / kMetricsFile, fs::path(config.out) / kMetricsFile);
  const RunResult resumed = run(config, resuming());
  EXPECT_EQ(resumed.step, 20);
  EXPECT_EQ(contents(straight.checkpoint), contents(resumed.checkpoint));
  EXPECT_EQ(timeless_metrics(first), timeless_metrics(config.out));
  EXPECT_EQ(straight.held_out, resumed.held_out);

  // From a given place, into a new folder.
  config.out = (scratch / "third").string();
  const RunResult third = run(config, resuming(first / checkpoint_name(10)));
  EXPECT_EQ(contents(straight.checkpoint), contents(third.checkpoint));

  // A run that is over has nothing to add.
  const std::string before = read_file(first / kMetricsFile);
  config.out = first.string();
  EXPECT_EQ(run(config, resuming()).step, 20);
  EXPECT_EQ(read_file(first / kMetricsFile), before);
}

TEST(Run, LeavesWhatItPromises) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  config.max_steps = 12;
  config.checkpoint_every = 2;
  config.keep = 3;
  const RunResult result = run(config, {});
  EXPECT_THAT(steps_in(config.out), ElementsAre(8, 10, 12));
  const fs::path out = config.out;
  for (const char* file : {"config.json", "model.safetensors", "tokenizer.json",
                           "optimizer.safetensors", "trainer.json"}) {
    EXPECT_TRUE(fs::exists(result.checkpoint / file)) << file;
  }
  EXPECT_EQ(read_file(result.checkpoint / "config.json"), config.model);
  EXPECT_THAT(read_file(out / "loss_curve.svg"), HasSubstr("</svg>"));
  EXPECT_FALSE(fs::is_empty(out / "tensorboard"));
  const LossCurves curves = read_loss_curves(out / kMetricsFile);
  EXPECT_EQ(curves.train.size(), 12u);
  EXPECT_EQ(curves.held_out.size(), 5u);  // steps 0, 4, 8, 12, and the longer last one
  EXPECT_EQ(curves.held_out.back().loss, result.held_out);
  EXPECT_LT(curves.train.back().loss, curves.train.front().loss);
}

TEST(Run, AFolderWithCheckpointsIsNotOverwrittenUnasked) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  run(config, {});
  EXPECT_THAT(error_of(config), testing::AllOf(HasSubstr("--resume"), HasSubstr("--overwrite")));
  write_file_atomically(fs::path(config.out) / "mine.txt", "kept");
  config.max_steps = 6;
  config.warmup_steps = 0;
  RunOptions anew;
  anew.overwrite = true;
  run(config, anew);
  EXPECT_THAT(steps_in(config.out), ElementsAre(5, 6));
  EXPECT_EQ(read_loss_curves(fs::path(config.out) / kMetricsFile).train.size(), 6u);
  EXPECT_TRUE(fs::exists(fs::path(config.out) / "mine.txt"));
  // What is newer than the checkpoint resumed from would be lost.
  EXPECT_THAT(error_of(config, resuming(fs::path(config.out) / checkpoint_name(5))),
              HasSubstr("newer"));
  EXPECT_THAT(error_of(config, resuming(scratch / "data")), HasSubstr("no checkpoint"));
}

TEST(Run, StopsWithACheckpointWhenAsked) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  config.checkpoint_every = 0;
  const std::atomic<int> stop{15};
  RunOptions stopped;
  stopped.stop = &stop;
  const RunResult result = run(config, stopped);
  EXPECT_TRUE(result.stopped);
  EXPECT_EQ(result.step, 0);
  EXPECT_THAT(steps_in(config.out), ElementsAre(0));
  EXPECT_EQ(run(config, resuming()).step, 10);
  EXPECT_THAT(steps_in(config.out), ElementsAre(0, 10));
}

TEST(Run, TooManyBadStepsInARowEndItWithTheLastGoodWeights) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  config.checkpoint_every = 0;
  config.max_skips = 2;
  config.warmup_steps = 0;
  config.learning_rate = 1e25;  // the first update sends every weight to 1e25
  const std::string error = error_of(config);
  EXPECT_THAT(error, testing::AllOf(HasSubstr("step 4"), HasSubstr("loss is not finite"),
                                    HasSubstr("3 steps in a row"), HasSubstr("step-00000004")));
  EXPECT_THAT(steps_in(config.out), ElementsAre(4));
  EXPECT_THAT(read_file(fs::path(config.out) / kMetricsFile),
              HasSubstr(R"({"step":2,"kind":"skip","tensor":"loss")"));
  const Json state = read_json(fs::path(config.out) / checkpoint_name(4) / kTrainerFile);
  EXPECT_EQ(state["optimizer_step"], 1);
  EXPECT_EQ(state["skips_in_row"], 3);
}

TEST(Run, ATimeBudgetEndsTheRun) {
  const Scratch scratch;
  make_data(scratch);
  TrainConfig config = small_run(scratch);
  config.max_steps = std::nullopt;
  config.warmup_steps = std::nullopt;
  config.warmup_fraction = 0.2;
  config.max_seconds = 0.5;
  const RunResult result = run(config, {});
  EXPECT_FALSE(result.stopped);
  EXPECT_TRUE(result.held_out.has_value());
  EXPECT_EQ(steps_in(config.out).back(), result.step);
}

}  // namespace
}  // namespace mdn::train
