#include "mdn/data/dataset_writer.h"

#include <algorithm>
#include <system_error>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/data/dataset.h"
#include "mdn/io/file.h"

namespace mdn::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kShardExtension = ".mdnt";

bool is_ours(const fs::path& entry) {
  const std::string name = entry.filename().string();
  return name == kManifestFile || entry.extension() == kShardExtension ||
         name == "tokenizer.json" || name == "tokenizer_config.json" || is_temporary_name(name);
}

/// Before a folder is removed: that it holds nothing but what a DatasetWriter writes.
void check_only_ours(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    MDN_CHECK(entry.is_regular_file() && is_ours(entry.path()),
              "{}: holds {}, which `mdn data` did not write, so it is not removed; move that away "
              "or choose another folder",
              folder.string(), entry.path().filename().string());
  }
}

/// Runs an action on folders whose failures then read as ours do.
template <typename Action>
void on_folders(const Action& action) {
  try {
    action();
  } catch (const fs::filesystem_error& error) {
    MDN_THROW("{}: {}", error.path1().string(), error.code().message());
  }
}

}  // namespace

DatasetWriter::DatasetWriter(const fs::path& folder, const Options& options) : options_(options) {
  MDN_CHECK(options.shard_tokens >= 1, "shards of {} tokens; at least 1 is needed",
            options.shard_tokens);
  MDN_CHECK(!folder.empty(), "an empty name for the data folder");
  on_folders([&] {
    // A symbolic link is followed, or the move at the end would meet the link and not its folder.
    folder_ = fs::weakly_canonical(fs::absolute(folder));
    if (!folder_.has_filename()) {
      folder_ = folder_.parent_path();  // it ended with a slash
    }
    MDN_CHECK(folder_.has_filename(), "{}: cannot be a data folder", folder.string());
    if (fs::exists(folder_)) {
      MDN_CHECK(fs::is_directory(folder_), "{}: exists and is no folder", folder.string());
      MDN_CHECK(options.replace || !fs::exists(folder_ / kManifestFile),
                "{}: holds a data set already; --replace puts the new one in its place",
                folder.string());
      check_only_ours(folder_);
    }
    partial_ = folder_.parent_path() / fmt::format(".{}.partial", folder_.filename().string());
    fs::create_directories(folder_.parent_path());
    if (fs::exists(partial_)) {
      check_only_ours(partial_);
      fs::remove_all(partial_);
    }
    fs::create_directory(partial_);
  });
}

DatasetWriter::~DatasetWriter() {
  if (!finished_) {
    for (Split* split : {&train_, &val_}) {
      split->shard.reset();
      split->targets.reset();
    }
    std::error_code ignored;
    fs::remove_all(partial_, ignored);
  }
}

void DatasetWriter::add(Split& split, std::span<const int32_t> tokens, int64_t text_bytes,
                        std::span<const int32_t> targets) {
  const auto count = static_cast<int64_t>(tokens.size());
  MDN_CHECK(targets.size() == (options_.targets ? tokens.size() : 0),
            "a document of {} tokens with {} targets; {}", count, targets.size(),
            options_.targets ? "each token needs one" : "this data set has none");
  if (split.shard.has_value() && split.shard->tokens() > 0 &&
      split.shard->tokens() + count > options_.shard_tokens) {
    close(split);
  }
  if (!split.shard.has_value()) {
    split.shard.emplace(
        partial_ / fmt::format("{}-{:05}{}", split.name, split.info.shards.size(), kShardExtension),
        options_.format);
    if (options_.targets) {
      ShardFormat format = options_.format;
      ++format.vocab_size;
      format.token_bytes = token_bytes_for(format.vocab_size);
      split.targets.emplace(partial_ / fmt::format("{}-{:05}.targets{}", split.name,
                                                   split.info.shards.size(), kShardExtension),
                            format);
    }
  }
  split.shard->add_document(tokens, text_bytes);
  if (options_.targets) {
    std::vector<int32_t> ids(targets.begin(), targets.end());
    std::replace(ids.begin(), ids.end(), static_cast<int32_t>(kIgnoredTarget),
                 static_cast<int32_t>(options_.format.vocab_size));
    split.targets->add_document(ids, text_bytes);
  }
  split.tokens += count;
}

void DatasetWriter::close(Split& split) {
  if (!split.shard.has_value()) {
    return;
  }
  ShardInfo info;
  info.file = split.shard->path().filename().string();
  info.checksum = split.shard->finish();
  info.documents = split.shard->documents();
  info.tokens = split.shard->tokens();
  info.text_bytes = split.shard->text_bytes();
  info.file_bytes = split.shard->file_bytes();
  split.shard.reset();
  if (split.targets.has_value()) {
    info.targets_file = split.targets->path().filename().string();
    info.targets_checksum = split.targets->finish();
    info.targets_file_bytes = split.targets->file_bytes();
    split.targets.reset();
  }
  split.info.shards.push_back(info);
}

void DatasetWriter::finish(Manifest& manifest) {
  close(train_);
  close(val_);
  manifest.train = train_.info;
  manifest.val = val_.info;
  write_file_atomically(
      partial_ / kManifestFile,
      manifest.to_json().dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
  // A folder cannot be renamed over one that has files: the old one steps aside first.
  const fs::path old = folder_.parent_path() / fmt::format(".{}.old", folder_.filename().string());
  on_folders([&] {
    if (fs::exists(folder_)) {
      check_only_ours(folder_);
      if (fs::exists(old)) {
        check_only_ours(old);
        fs::remove_all(old);
      }
      fs::rename(folder_, old);
    }
    fs::rename(partial_, folder_);
  });
  finished_ = true;
  sync_folder(folder_.parent_path());
  std::error_code ignored;  // the new folder is in place: a rest of the old one is no failure
  fs::remove_all(old, ignored);
}

}  // namespace mdn::data
