// A folder for one test, a small data set of made-up text, and a small model.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "mdn/data/prepare.h"
#include "mdn/io/file.h"
#include "mdn/tokenizer/tokenizer.h"
#include "mdn/train/config.h"

namespace mdn::train {

/// Removed with the test.
class Scratch {
 public:
  Scratch() {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("mdn-{}-{}-{}", info->test_suite_name(), info->name(), ::getpid());
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// About `bytes` of words drawn by a fixed rule: the same on every machine.
inline std::string made_up_text(size_t bytes) {
  static constexpr const char* kWords[] = {"the ", "river ", "runs ", "under ",
                                           "a ",   "stone ", "hill.", "\n",
                                           "Who ", "walks ", "the ",  "bridge? "};
  std::string text;
  for (uint64_t x = 1; text.size() < bytes; x = x * 6364136223846793005u + 1442695040888963407u) {
    text += kWords[(x >> 33) % 12];
  }
  return text;
}

/// Writes a data folder of bytes, a tenth held out, and returns it.
inline std::filesystem::path make_data(const Scratch& scratch, size_t bytes = 6000) {
  write_file_atomically(scratch / "text.txt", made_up_text(bytes));
  data::PrepareOptions options;
  options.sources = {scratch / "text.txt"};
  options.output = scratch / "data";
  data::prepare(ByteTokenizer(), "bytes", options);
  return options.output;
}

/// The golden MDN model: hidden 64, 2 layers, 2 heads of 32/64, bytes.
inline std::filesystem::path golden_model() {
  return std::filesystem::path(MDN_TEST_DATA) / "goldens" / "mdn";
}

/// Ten steps of it from its stored weights.
inline TrainConfig small_run(const Scratch& scratch) {
  const std::filesystem::path golden = golden_model();
  TrainConfig config;
  config.model = read_file(golden / "config.json");
  config.init_from = (golden / "weights.safetensors").string();
  config.data = (scratch / "data").string();
  config.out = (scratch / "out").string();
  config.rows = 2;
  config.length = 24;
  config.order = "windows";
  config.separate_documents = false;
  config.max_steps = 10;
  config.learning_rate = 1e-3;
  config.warmup_steps = 3;
  config.eval_tokens = 48;
  config.final_eval_tokens = 96;
  config.eval_every = 4;
  config.log_every = 1;
  config.checkpoint_every = 5;
  config.seed = 11;
  config.threads = 1;
  return config;
}

}  // namespace mdn::train
