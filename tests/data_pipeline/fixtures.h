// Folders, files and small data sets for the tests of mdn/data.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/data/dataset.h"
#include "mdn/data/dataset_writer.h"
#include "mdn/io/file.h"

namespace mdn::data {

/// A folder of its own for each test, removed at its end.
class FolderTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    std::string name = fmt::format("mdn_{}_{}_{}", test->test_suite_name(), test->name(), getpid());
    std::replace(name.begin(), name.end(), '/', '_');
    folder_ = std::filesystem::temp_directory_path() / name;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }

  std::filesystem::path folder_;
};

/// What an action says when it fails; empty when it does not.
template <typename Action>
std::string error_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Documents of the given lengths whose tokens are all different, counted from `first`.
inline std::vector<std::vector<int32_t>> counted_documents(const std::vector<int64_t>& lengths,
                                                           int32_t first = 0) {
  std::vector<std::vector<int32_t>> documents;
  for (const int64_t length : lengths) {
    auto& document = documents.emplace_back();
    for (int64_t i = 0; i < length; ++i) {
      document.push_back(first++);
    }
  }
  return documents;
}

/// A data folder with these training documents and, unless it is empty, one held-out document.
inline Manifest write_dataset(const std::filesystem::path& folder,
                              const std::vector<std::vector<int32_t>>& train,
                              const std::vector<int32_t>& val = {}, int64_t vocab_size = 65536,
                              int64_t shard_tokens = 100'000'000) {
  ShardFormat format{.token_bytes = token_bytes_for(vocab_size), .vocab_size = vocab_size};
  format.tokenizer.fill(0xab);
  DatasetWriter writer(folder, {.format = format, .shard_tokens = shard_tokens, .replace = true});
  for (const auto& document : train) {
    writer.add_train(document, static_cast<int64_t>(document.size()));
  }
  if (!val.empty()) {
    writer.add_val(val, static_cast<int64_t>(val.size()));
  }
  Manifest manifest;
  manifest.tokenizer_name = "test";
  for (int i = 0; i < 32; ++i) {
    manifest.tokenizer_hash += "ab";
  }
  manifest.vocab_size = vocab_size;
  manifest.split_by = "document";
  writer.finish(manifest);
  return manifest;
}

}  // namespace mdn::data
