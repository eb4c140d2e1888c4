#include "mdn/data/manifest.h"

#include <algorithm>
#include <set>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn::data {
namespace {

constexpr const char* kFormat = "mdn-token-shards";
constexpr int64_t kVersion = 1;
constexpr int64_t kMost = int64_t{1} << 60;  // of anything: sums of these stay in 64 bits

int64_t sum_of(const std::vector<ShardInfo>& shards, int64_t ShardInfo::*member) {
  int64_t sum = 0;
  for (const ShardInfo& shard : shards) {
    sum += shard.*member;
  }
  return sum;
}

std::string hash_of(const JsonObject& object, std::string_view key) {
  std::string text = object.string(key);
  if (text.size() != 64 || text.find_first_not_of("0123456789abcdef") != std::string::npos) {
    object.fail(key, "a SHA-256 of 64 lower-case hexadecimal digits");
  }
  return text;
}

OrderedJson split_json(const SplitInfo& split) {
  OrderedJson shards = OrderedJson::array();
  for (const ShardInfo& shard : split.shards) {
    OrderedJson& entry = shards.emplace_back(OrderedJson{{"file", shard.file},
                                                         {"documents", shard.documents},
                                                         {"tokens", shard.tokens},
                                                         {"text_bytes", shard.text_bytes},
                                                         {"file_bytes", shard.file_bytes},
                                                         {"checksum", shard.checksum}});
    if (shard.has_targets()) {
      entry["targets"] = {{"file", shard.targets_file},
                          {"file_bytes", shard.targets_file_bytes},
                          {"checksum", shard.targets_checksum}};
    }
  }
  return {{"documents", split.documents()},
          {"tokens", split.tokens()},
          {"text_bytes", split.text_bytes()},
          {"shards", shards}};
}

std::string file_name_of(const JsonObject& json, std::set<std::string>& used) {
  std::string file = json.string("file");
  // A name that leads out of the folder would open whatever it points to.
  if (file.empty() || file.front() == '.' ||
      file.find_first_of(std::string("/\\\0", 3)) != std::string::npos) {
    json.fail("file", "a file name without a folder");
  }
  if (!used.insert(file).second) {
    json.fail("file", "a name that no other shard has");
  }
  return file;
}

ShardInfo shard_from(const JsonObject& json, std::set<std::string>& used) {
  json.check_keys(
      {"file", "documents", "tokens", "text_bytes", "file_bytes", "checksum", "targets"});
  ShardInfo shard;
  shard.file = file_name_of(json, used);
  shard.documents = json.integer("documents", 0, kMost);
  shard.tokens = json.integer("tokens", 0, kMost);
  shard.text_bytes = json.integer("text_bytes", 0, kMost);
  shard.file_bytes = json.integer("file_bytes", 0, kMost);
  shard.checksum = hash_of(json, "checksum");
  if (json.has("targets")) {
    const JsonObject targets = json.object("targets");
    targets.check_keys({"file", "file_bytes", "checksum"});
    shard.targets_file = file_name_of(targets, used);
    shard.targets_file_bytes = targets.integer("file_bytes", 0, kMost);
    shard.targets_checksum = hash_of(targets, "checksum");
  }
  return shard;
}

void check_total(const JsonObject& json, std::string_view key, int64_t total) {
  if (json.integer(key, 0) != total) {
    json.fail(key, fmt::format("{}, the sum over its shards", total));
  }
}

SplitInfo split_from(const JsonObject& json, std::set<std::string>& used) {
  json.check_keys({"documents", "tokens", "text_bytes", "shards"});
  SplitInfo split;
  const Json& shards = json.array("shards");
  constexpr size_t kMostShards = 1'000'000;
  MDN_CHECK(shards.size() <= kMostShards, "{}: {} shards; at most {} are allowed", json.place(),
            shards.size(), kMostShards);
  int64_t most = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const JsonObject entry(shards[i], fmt::format("{}: shard {}", json.place(), i));
    split.shards.push_back(shard_from(entry, used));
    const ShardInfo& shard = split.shards.back();
    MDN_CHECK(shard.has_targets() == split.has_targets(),
              "{}: some shards have targets of their own and some have not", json.place());
    most += std::max({shard.documents, shard.tokens, shard.text_bytes}) / 8;
    MDN_CHECK(most <= kMost / 8, "{}: counts of more than {} in total", json.place(), kMost);
  }
  check_total(json, "documents", split.documents());
  check_total(json, "tokens", split.tokens());
  check_total(json, "text_bytes", split.text_bytes());
  return split;
}

}  // namespace

int64_t SplitInfo::documents() const {
  return sum_of(shards, &ShardInfo::documents);
}
int64_t SplitInfo::tokens() const {
  return sum_of(shards, &ShardInfo::tokens);
}
int64_t SplitInfo::text_bytes() const {
  return sum_of(shards, &ShardInfo::text_bytes);
}

OrderedJson Manifest::to_json() const {
  OrderedJson source_list = OrderedJson::array();
  for (const SourceInfo& source : sources) {
    source_list.push_back({{"path", source.path},
                           {"format", source.format},
                           {"compression", source.compression},
                           {"file_bytes", source.file_bytes},
                           {"text_bytes", source.text_bytes},
                           {"documents", source.documents},
                           {"sha256", source.sha256}});
  }
  return {{"format", kFormat},
          {"version", kVersion},
          {"tokenizer",
           {{"name", tokenizer_name}, {"hash", tokenizer_hash}, {"vocab_size", vocab_size}}},
          {"seed", seed},
          {"val_fraction", val_fraction},
          {"split_by", split_by},
          {"bos", bos},
          {"eos", eos},
          {"empty_documents", empty_documents},
          {"sources", source_list},
          {"splits", {{"train", split_json(train)}, {"val", split_json(val)}}}};
}

Manifest parse_manifest(const std::string& text, const std::string& name) {
  const Json json = parse_json(text, name);
  const JsonObject top(json, name);
  // Before the other keys: of another format or version they would only mislead.
  top.string("format", {kFormat});
  if (top.integer("version") != kVersion) {
    top.fail("version", fmt::format("{}, the version this program reads", kVersion));
  }
  top.check_keys({"format", "version", "tokenizer", "seed", "val_fraction", "split_by", "bos",
                  "eos", "empty_documents", "sources", "splits"});
  Manifest manifest;
  const JsonObject tokenizer = top.object("tokenizer");
  tokenizer.check_keys({"name", "hash", "vocab_size"});
  manifest.tokenizer_name = tokenizer.string("name");
  manifest.tokenizer_hash = hash_of(tokenizer, "hash");
  manifest.vocab_size = tokenizer.integer("vocab_size", 1, int64_t{1} << 31);
  manifest.seed = top.integer("seed", 0);
  manifest.val_fraction = top.real("val_fraction", 0.0, 1.0);
  manifest.split_by = top.string("split_by", {"document", "position"});
  manifest.bos = top.boolean("bos");
  manifest.eos = top.boolean("eos");
  manifest.empty_documents = top.integer("empty_documents", 0);
  const Json& sources = top.array("sources");
  for (size_t i = 0; i < sources.size(); ++i) {
    const JsonObject entry(sources[i], fmt::format("{}: source {}", name, i));
    entry.check_keys(
        {"path", "format", "compression", "file_bytes", "text_bytes", "documents", "sha256"});
    manifest.sources.push_back(
        {.path = entry.string("path"),
         .format = entry.string("format", {"text", "jsonl"}),
         .compression = entry.string("compression", {"none", "gzip", "zstd"}),
         .file_bytes = entry.integer("file_bytes", 0),
         .text_bytes = entry.integer("text_bytes", 0),
         .documents = entry.integer("documents", 0),
         .sha256 = hash_of(entry, "sha256")});
  }
  std::set<std::string> used;
  const JsonObject splits = top.object("splits");
  splits.check_keys({"train", "val"});
  manifest.train = split_from(splits.object("train"), used);
  manifest.val = split_from(splits.object("val"), used);
  return manifest;
}

Manifest read_manifest(const std::filesystem::path& path) {
  return parse_manifest(read_file(path), path.string());
}

}  // namespace mdn::data
