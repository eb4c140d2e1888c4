#include "mdn/data/dataset.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/io/hash.h"

namespace mdn::data {
namespace {

std::string hex_of(std::span<const uint8_t> bytes) {
  std::string text;
  for (const uint8_t byte : bytes) {
    text += fmt::format("{:02x}", byte);
  }
  return text;
}

void check_count(const ShardView& shard, const char* what, int64_t found, int64_t expected) {
  MDN_CHECK(found == expected,
            "{}: holds {} {}, and {} says {}: it is not the shard that was "
            "prepared there",
            shard.name(), found, what, kManifestFile, expected);
}

/// A valid shard may still be another data set's, or an older one of the same name.
void check_belongs(const ShardReader& reader, const ShardInfo& info, int64_t vocabulary,
                   const Manifest& manifest) {
  const ShardView& shard = reader.view();
  const std::string tokenizer = hex_of(shard.format().tokenizer);
  MDN_CHECK(tokenizer == manifest.tokenizer_hash,
            "{}: was made with the tokenizer {}..., and {} names {}...", shard.name(),
            tokenizer.substr(0, 12), kManifestFile, manifest.tokenizer_hash.substr(0, 12));
  check_count(shard, "vocabulary entries", shard.format().vocab_size, vocabulary);
  check_count(shard, "tokens", shard.tokens(), info.tokens);
  check_count(shard, "documents", shard.documents(), info.documents);
  check_count(shard, "bytes of text", shard.text_bytes(), info.text_bytes);
  check_count(shard, "bytes", reader.file_bytes(), info.file_bytes);
  MDN_CHECK(shard.checksum() == info.checksum,
            "{}: has the checksum {}..., and {} says {}...: it is not the shard that was prepared "
            "there",
            shard.name(), shard.checksum().substr(0, 12), kManifestFile,
            info.checksum.substr(0, 12));
}

/// The last index whose start is at most `at`; `starts` ascends from 0.
size_t shard_at(const std::vector<int64_t>& starts, int64_t at) {
  return static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), at) - starts.begin()) -
         1;
}

}  // namespace

TokenSplit::TokenSplit(std::string name, const SplitInfo& info, const Manifest& manifest,
                       const std::filesystem::path& folder, Verify verify)
    : name_(std::move(name)),
      text_bytes_(info.text_bytes()),
      vocab_size_(manifest.vocab_size),
      token_starts_{0},
      document_starts_{0} {
  Sha256 digest;
  digest.update(manifest.tokenizer_hash);
  shards_.reserve(info.shards.size());
  for (const ShardInfo& shard : info.shards) {
    const ShardReader& reader = shards_.emplace_back(folder / shard.file, verify);
    check_belongs(reader, shard, vocab_size_, manifest);
    token_starts_.push_back(token_starts_.back() + shard.tokens);
    document_starts_.push_back(document_starts_.back() + shard.documents);
    digest.update(shard.checksum);
    if (shard.has_targets()) {
      const ShardReader& targets = targets_.emplace_back(folder / shard.targets_file, verify);
      ShardInfo info_of_targets = shard;
      info_of_targets.file_bytes = shard.targets_file_bytes;
      info_of_targets.checksum = shard.targets_checksum;
      check_belongs(targets, info_of_targets, vocab_size_ + 1, manifest);
      digest.update(shard.targets_checksum);
    }
  }
  digest_ = digest.hex();
}

int64_t TokenSplit::document_start(int64_t d) const {
  MDN_CHECK(d >= 0 && d <= documents(), "{} split: document {} is asked for; it has {}", name_, d,
            documents());
  if (d == documents()) {
    return tokens();
  }
  const size_t shard = shard_at(document_starts_, d);
  return token_starts_[shard] + shards_[shard].view().document_start(d - document_starts_[shard]);
}

int64_t TokenSplit::document_of(int64_t at) const {
  MDN_CHECK(at >= 0 && at < tokens(), "{} split: token {} is asked for; it has {}", name_, at,
            tokens());
  const size_t shard = shard_at(token_starts_, at);
  return document_starts_[shard] + shards_[shard].view().document_of(at - token_starts_[shard]);
}

void TokenSplit::read(int64_t first, std::span<int64_t> out) const {
  read_from(shards_, first, out);
}

void TokenSplit::read_targets(int64_t first, std::span<int64_t> out) const {
  MDN_CHECK(has_targets(), "{} split: its tokens have no targets of their own", name_);
  read_from(targets_, first, out);
  std::replace(out.begin(), out.end(), vocab_size_, kIgnoredTarget);
}

void TokenSplit::read_from(const std::vector<ShardReader>& shards, int64_t first,
                           std::span<int64_t> out) const {
  MDN_CHECK(first >= 0 && first <= tokens() && static_cast<int64_t>(out.size()) <= tokens() - first,
            "{} split: {} tokens from {} on are asked for; it has {}", name_, out.size(), first,
            tokens());
  while (!out.empty()) {
    const size_t shard = shard_at(token_starts_, first);
    const auto take = std::min(out.size(), static_cast<size_t>(token_starts_[shard + 1] - first));
    shards[shard].view().read(first - token_starts_[shard], out.first(take));
    first += static_cast<int64_t>(take);
    out = out.subspan(take);
  }
}

TokenDataset::TokenDataset(const std::filesystem::path& folder, Verify verify) : folder_(folder) {
  const std::filesystem::path path = folder / kManifestFile;
  MDN_CHECK(std::filesystem::is_directory(folder), "{}: is no folder; `mdn data` makes one",
            folder.string());
  MDN_CHECK(std::filesystem::exists(path),
            "{}: has no {}, so it is no data folder; `mdn data` makes one", folder.string(),
            kManifestFile);
  manifest_ = read_manifest(path);
  train_.reset(new TokenSplit("train", manifest_.train, manifest_, folder, verify));
  val_.reset(new TokenSplit("val", manifest_.val, manifest_, folder, verify));
}

}  // namespace mdn::data
