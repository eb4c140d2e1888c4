// A folder of token shards as `mdn data` writes it, opened for reading: manifest.json and, for each
// split, shards whose tokens follow one another as one long stream of documents.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mdn/data/manifest.h"
#include "mdn/data/shard.h"

namespace mdn::data {

/// The target of a position where nothing is to be predicted; cross-entropy skips it.
inline constexpr int64_t kIgnoredTarget = -100;

/// The documents of one split, end to end in the order they were prepared: a stream of tokens() ids
/// in [0, vocab_size). Reading is safe from several threads.
class TokenSplit {
 public:
  int64_t tokens() const { return token_starts_.back(); }
  int64_t documents() const { return document_starts_.back(); }
  /// Bytes of the text the tokens came from: turns nats a token into nats (or bits) a byte.
  int64_t text_bytes() const { return text_bytes_; }
  int64_t vocab_size() const { return vocab_size_; }
  const std::string& name() const { return name_; }  // "train" or "val"
  /// Changes with any token, document boundary or shard of the split: 64 hexadecimal digits.
  const std::string& digest() const { return digest_; }

  /// Where document d in [0, documents()] starts in the stream; documents() gives tokens().
  int64_t document_start(int64_t d) const;
  /// The document that holds token `at` in [0, tokens()).
  int64_t document_of(int64_t at) const;
  /// Copies tokens [first, first + out.size()). Throws when that leaves [0, tokens()), and when an
  /// id is not in the vocabulary (a corrupt shard opened with Verify::kStructure).
  void read(int64_t first, std::span<int64_t> out) const;

  /// Whether the tokens have targets of their own, instead of the token after each.
  bool has_targets() const { return !targets_.empty(); }
  /// Copies the targets of tokens [first, first + out.size()): tokens or kIgnoredTarget.
  void read_targets(int64_t first, std::span<int64_t> out) const;

 private:
  friend class TokenDataset;
  TokenSplit(std::string name, const SplitInfo& info, const Manifest& manifest,
             const std::filesystem::path& folder, Verify verify);
  void read_from(const std::vector<ShardReader>& shards, int64_t first,
                 std::span<int64_t> out) const;

  std::string name_;
  std::string digest_;
  int64_t text_bytes_ = 0;
  int64_t vocab_size_ = 0;
  std::vector<ShardReader> shards_;
  std::vector<ShardReader> targets_;      // empty, or one for each shard
  std::vector<int64_t> token_starts_;     // [shards + 1]: each shard's first token in the stream
  std::vector<int64_t> document_starts_;  // [shards + 1]: each shard's first document
};

/// The splits of a folder. Opening checks manifest.json, that every shard it names is there,
/// belongs to it and agrees with its counts, and, with Verify::kFull (the default), every byte of
/// every shard against its checksum: a second a gigabyte and thread, or less. Verify::kStructure
/// leaves the tokens unread: for corpora where that second matters, after one `mdn data --check`.
class TokenDataset {
 public:
  explicit TokenDataset(const std::filesystem::path& folder, Verify verify = Verify::kFull);

  const Manifest& manifest() const { return manifest_; }
  const std::filesystem::path& folder() const { return folder_; }
  const TokenSplit& train() const { return *train_; }
  /// The held-out split; without documents when it was prepared with --val-fraction 0.
  const TokenSplit& val() const { return *val_; }

 private:
  std::filesystem::path folder_;
  Manifest manifest_;
  std::unique_ptr<TokenSplit> train_;
  std::unique_ptr<TokenSplit> val_;
};

}  // namespace mdn::data
