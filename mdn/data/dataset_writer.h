// Writes a data folder that appears whole or not at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "mdn/data/manifest.h"
#include "mdn/data/shard.h"

namespace mdn::data {

/// Shards and manifest are written to `.NAME.partial` beside the folder and moved into place by
/// finish(). A writer that is destroyed before removes them; what a killed process left is removed
/// by the next one.
class DatasetWriter {
 public:
  struct Options {
    ShardFormat format;
    /// A shard is closed before the document that would pass it. Documents are never divided, so a
    /// longer one has a longer shard for itself.
    int64_t shard_tokens = 100'000'000;
    /// Whether documents come with targets of their own. These are written to shards beside those
    /// of the tokens, with one more id, vocab_size, for kIgnoredTarget.
    bool targets = false;
    /// Whether a data folder that is already there may be replaced (by finish(), at the end). One
    /// that holds anything else is never touched.
    bool replace = false;
  };
  /// Throws when the folder exists and may not be replaced.
  DatasetWriter(const std::filesystem::path& folder, const Options& options);
  ~DatasetWriter();
  DatasetWriter(const DatasetWriter&) = delete;
  DatasetWriter& operator=(const DatasetWriter&) = delete;

  /// `targets`: one a token, a token or kIgnoredTarget; empty unless Options::targets.
  void add_train(std::span<const int32_t> tokens, int64_t text_bytes,
                 std::span<const int32_t> targets = {}) {
    add(train_, tokens, text_bytes, targets);
  }
  void add_val(std::span<const int32_t> tokens, int64_t text_bytes,
               std::span<const int32_t> targets = {}) {
    add(val_, tokens, text_bytes, targets);
  }
  int64_t train_tokens() const { return train_.tokens; }
  int64_t val_tokens() const { return val_.tokens; }

  /// Where the folder is being written, for files beside the shards (the tokenizer's).
  const std::filesystem::path& partial() const { return partial_; }

  /// Fills the manifest's splits, writes it last, and moves the folder into place.
  void finish(Manifest& manifest);

 private:
  struct Split {
    std::string name;
    SplitInfo info;
    std::optional<ShardWriter> shard;
    std::optional<ShardWriter> targets;
    int64_t tokens = 0;
  };
  void add(Split& split, std::span<const int32_t> tokens, int64_t text_bytes,
           std::span<const int32_t> targets);
  void close(Split& split);

  std::filesystem::path folder_;
  std::filesystem::path partial_;
  Options options_;
  Split train_{.name = "train", .info = {}, .shard = {}, .targets = {}, .tokens = 0};
  Split val_{.name = "val", .info = {}, .shard = {}, .targets = {}, .tokens = 0};
  bool finished_ = false;
};

}  // namespace mdn::data
