// manifest.json of a data folder: what the shards hold, how and from what they were made.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "mdn/io/json.h"

namespace mdn::data {

inline constexpr const char* kManifestFile = "manifest.json";

struct ShardInfo {
  std::string file;  // a name in the manifest's folder
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t text_bytes = 0;
  int64_t file_bytes = 0;
  std::string checksum;  // the shard trailer's, 64 hexadecimal digits
  /// Of data with targets of its own: the shard of these, a target for each token; else empty.
  std::string targets_file;
  int64_t targets_file_bytes = 0;
  std::string targets_checksum;
  bool has_targets() const { return !targets_file.empty(); }
};

struct SplitInfo {
  std::vector<ShardInfo> shards;
  int64_t documents() const;
  int64_t tokens() const;
  int64_t text_bytes() const;
  /// Whether every shard has targets; read_manifest refuses a mixture.
  bool has_targets() const { return !shards.empty() && shards.front().has_targets(); }
};

struct SourceInfo {
  std::string path;         // as it was given
  std::string format;       // "text" or "jsonl"
  std::string compression;  // "none", "gzip" or "zstd"
  int64_t file_bytes = 0;
  int64_t text_bytes = 0;  // of its documents
  int64_t documents = 0;
  std::string sha256;  // of the file as it lies on the disk
};

struct Manifest {
  std::string tokenizer_name;
  std::string tokenizer_hash;  // SHA-256, 64 hexadecimal digits
  int64_t vocab_size = 0;
  int64_t seed = 0;
  double val_fraction = 0.0;
  std::string split_by;         // "document" or "position"
  bool bos = false;             // whether documents start with the tokenizer's bos
  bool eos = false;             // whether they end with its eos
  int64_t empty_documents = 0;  // left out
  std::vector<SourceInfo> sources;
  SplitInfo train;
  SplitInfo val;

  /// With totals beside the shards, for people.
  OrderedJson to_json() const;
};

/// Reads and checks: format and version, types and ranges, totals against shards, names without
/// folders, each used once. Unknown keys are errors.
Manifest read_manifest(const std::filesystem::path& path);
/// The same over a text; `name` opens every message.
Manifest parse_manifest(const std::string& text, const std::string& name);

}  // namespace mdn::data
