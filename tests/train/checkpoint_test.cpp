#include "mdn/train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> steps_in(const fs::path& out) {
  std::vector<int64_t> steps;
  for (const Checkpoint& c : find_checkpoints(out)) {
    steps.push_back(c.step);
  }
  return steps;
}

void write_one(const fs::path& out, int64_t step, const std::string& content = "x") {
  write_checkpoint(
      out, step, [&](const fs::path& folder) { write_file_atomically(folder / "file", content); });
}

size_t entries_in(const fs::path& folder) {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

TEST(Checkpoint, WrittenFoundPrunedInOrder) {
  const Scratch scratch;
  for (const int64_t step : {2, 10, 100000000}) {
    write_one(scratch.path(), step);
  }
  fs::create_directory(scratch / "step-7");  // not our form
  fs::create_directory(scratch / ".step-00000003.tmp.1");
  write_file_atomically(scratch / "step-00000009", "a file");
  EXPECT_THAT(steps_in(scratch.path()), ElementsAre(2, 10, 100000000));
  EXPECT_EQ(checkpoint_name(1000), "step-00001000");
  prune_checkpoints(scratch.path(), 2);
  EXPECT_THAT(steps_in(scratch.path()), ElementsAre(10, 100000000));
  EXPECT_TRUE(find_checkpoints(scratch / "absent").empty());
}

TEST(Checkpoint, SameStepIsReplaced) {
  const Scratch scratch;
  write_one(scratch.path(), 5, "old");
  write_one(scratch.path(), 5, "new");
  EXPECT_EQ(read_file(scratch.path() / "step-00000005" / "file"), "new");
  EXPECT_EQ(entries_in(scratch.path()), 1u);
}

TEST(Checkpoint, FailureLeavesTheOthersAndNoRest) {
  const Scratch scratch;
  write_one(scratch.path(), 5, "old");
  EXPECT_THROW(write_checkpoint(scratch.path(), 6,
                                [](const fs::path& folder) {
                                  write_file_atomically(folder / "a", "partly");
                                  MDN_THROW("disk full");
                                }),
               Error);
  EXPECT_EQ(entries_in(scratch.path()), 1u);
  EXPECT_EQ(read_file(scratch.path() / "step-00000005" / "file"), "old");
}

TEST(Checkpoint, LeftoversOfKilledRunsAreRemoved) {
  const Scratch scratch;
  write_one(scratch.path(), 5);
  fs::create_directory(scratch / ".step-00000006.tmp.123");
  write_file_atomically(scratch / ".step-00000006.tmp.123" / "half", "x");
  fs::create_directory(scratch / ".step-00000001.removed.9");
  write_file_atomically(scratch / ".metrics.jsonl.tmp.77.0", "x");
  write_file_atomically(scratch / "mine.txt", "x");
  clean_leftovers(scratch.path());
  EXPECT_EQ(entries_in(scratch.path()), 2u);
  EXPECT_TRUE(fs::exists(scratch / "mine.txt"));
  EXPECT_THAT(steps_in(scratch.path()), ElementsAre(5));
}

TEST(Checkpoint, OneRunAFolder) {
  const Scratch scratch;
  {
    const RunLock lock(scratch.path());
    try {
      const RunLock second(scratch.path());
      FAIL() << "locked twice";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("another process"));
    }
  }
  EXPECT_NO_THROW(RunLock{scratch.path()});
}

TEST(Checkpoint, TrainerStateReadsBack) {
  TrainerState state;
  state.step = 12;
  state.optimizer_step = 11;
  state.tokens = 1 << 20;
  state.seconds = 0.1 + 0.2;
  state.loss_sum = 1.0 / 3.0;
  state.loss_count = 2;
  state.best_loss = 1.75;
  state.best_step = 10;
  state.position = {.epoch = 1,
                    .row = 2,
                    .seed = 3,
                    .length = 4,
                    .order = "packed",
                    .separate_documents = true,
                    .data = std::string(64, 'a')};
  state.config["rows"] = 4;
  const Json json = Json::parse(state.to_json().dump());
  const TrainerState again = TrainerState::from_json(JsonObject(json, "trainer.json"));
  EXPECT_EQ(again.to_json(), state.to_json());
  EXPECT_EQ(again.loss_sum, state.loss_sum);  // every bit
  Json other = json;
  other["format"] = 2;
  EXPECT_THROW(TrainerState::from_json(JsonObject(other, "trainer.json")), Error);
}

}  // namespace
}  // namespace mdn::train
