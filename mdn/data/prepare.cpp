#include "mdn/data/prepare.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/data/dataset_writer.h"
#include "mdn/data/permutation.h"
#include "mdn/io/hash.h"

namespace mdn::data {
namespace {

// Documents are gathered to this much text before they are tokenised together: enough to keep all
// threads busy, little beside the model's memory.
constexpr int64_t kGroupBytes = int64_t{8} << 20;
constexpr uint64_t kHeldOut = 5;  // the seed's use; batches.cpp has 1 to 4

std::array<uint8_t, 32> bytes_of_hex(const std::string& hex) {
  std::array<uint8_t, 32> bytes = {};
  MDN_CHECK(hex.size() == 64, "a tokenizer hash of {} digits; a SHA-256 has 64", hex.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char* digits = hex.data() + 2 * i;
    const auto result = std::from_chars(digits, digits + 2, bytes[i], 16);
    MDN_CHECK(result.ptr == digits + 2, "a tokenizer hash of '{}'; hexadecimal digits are allowed",
              hex);
  }
  return bytes;
}

/// floor((1 - fraction) * bytes), moved back to the start of a UTF-8 character.
size_t cut_of(std::string_view text, double fraction) {
  auto cut = static_cast<size_t>(static_cast<double>(text.size()) * (1.0 - fraction));
  cut = std::min(cut, text.size());
  const auto within_character = [&](size_t at) {
    return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80;
  };
  for (int steps = 0; steps < 3 && cut > 0 && within_character(cut); ++steps) {
    --cut;
  }
  return cut;
}

/// u < fraction, with u in [0, 1) from the seed and the text alone.
bool held_out(std::string_view text, double fraction, int64_t seed) {
  Sha256 hash;
  hash.update(text);
  const auto digest = hash.digest();
  uint64_t content;
  std::memcpy(&content, digest.data(), sizeof content);
  const uint64_t random = keyed_random(derive_key(seed, kHeldOut, 0), content);
  return static_cast<double>(random >> 11) * 0x1p-53 < fraction;
}

/// A document's tokens, or those of both its parts.
struct Encoded {
  std::vector<int32_t> train;
  std::vector<int32_t> val;
  int64_t train_bytes = 0;
  int64_t val_bytes = 0;
};

class Preparation {
 public:
  Preparation(const Tokenizer& tokenizer, const std::string& tokenizer_name,
              const PrepareOptions& options)
      : tokenizer_(tokenizer), options_(options), split_by_(options.split_by) {
    MDN_CHECK(!options.sources.empty(), "no source files were named");
    MDN_CHECK(options.val_fraction >= 0.0 && options.val_fraction < 1.0,
              "a held-out fraction of {}; allowed is [0, 1)", options.val_fraction);
    MDN_CHECK(options.seed >= 0, "a seed of {}; it must not be negative", options.seed);
    eos_ = options.eos ? tokenizer.eos_id() : std::nullopt;
    bos_ = options.bos ? tokenizer.bos_id() : std::nullopt;
    if (bos_ == eos_) {
      bos_ = std::nullopt;
    }
    manifest_.tokenizer_name = tokenizer_name;
    manifest_.tokenizer_hash = tokenizer.hash();
    manifest_.vocab_size = tokenizer.vocab_size();
    manifest_.seed = options.seed;
    manifest_.val_fraction = options.val_fraction;
    manifest_.bos = bos_.has_value();
    manifest_.eos = eos_.has_value();
    for (const auto& source : options.sources) {
      std::error_code not_a_file;
      const auto size = std::filesystem::file_size(source, not_a_file);
      progress_.total_file_bytes += not_a_file ? 0 : static_cast<int64_t>(size);
    }
  }

  Manifest run() {
    DatasetWriter writer(options_.output,
                         {.format = {.token_bytes = token_bytes_for(manifest_.vocab_size),
                                     .vocab_size = manifest_.vocab_size,
                                     .tokenizer = bytes_of_hex(manifest_.tokenizer_hash)},
                          .shard_tokens = options_.shard_tokens,
                          .replace = options_.replace});
    for (const auto& source : options_.sources) {
      read(source, writer);
    }
    flush(writer, true);
    check_splits(writer);
    manifest_.split_by = name_of(split_by_);
    tokenizer_.save(writer.partial());
    writer.finish(manifest_);
    return manifest_;
  }

 private:
  void read(const std::filesystem::path& path, DatasetWriter& writer) {
    DocumentReader reader(path, options_.documents);
    SourceInfo source;
    source.path = path.string();
    const int64_t before = progress_.file_bytes;
    Document document;
    while (reader.next(document)) {
      progress_.file_bytes = before + reader.stream().file_bytes();
      if (document.text.empty()) {
        ++manifest_.empty_documents;
        continue;
      }
      const auto bytes = static_cast<int64_t>(document.text.size());
      ++source.documents;
      source.text_bytes += bytes;
      group_bytes_ += bytes;
      group_.push_back(std::move(document));
      // Whether there is one document or more is known with the second.
      if (group_bytes_ >= kGroupBytes && (split_by_ != SplitBy::kAuto || group_.size() > 1)) {
        flush(writer, false);
      }
    }
    progress_.file_bytes = before + reader.stream().file_bytes();
    source.format = name_of(reader.format());
    source.compression = name_of(reader.stream().compression());
    source.file_bytes = reader.stream().file_bytes();
    source.sha256 = reader.stream().file_sha256();
    manifest_.sources.push_back(source);
  }

  void flush(DatasetWriter& writer, bool last) {
    if (split_by_ == SplitBy::kAuto) {
      split_by_ = last && group_.size() == 1 ? SplitBy::kPosition : SplitBy::kDocument;
    }
    std::vector<Encoded> encoded(group_.size());
    parallel_for(static_cast<int64_t>(group_.size()), [&](int64_t i, int) {
      encoded[static_cast<size_t>(i)] = encode(group_[static_cast<size_t>(i)]);
    });
    for (const Encoded& document : encoded) {
      if (!document.train.empty()) {
        writer.add_train(document.train, document.train_bytes);
      }
      if (!document.val.empty()) {
        writer.add_val(document.val, document.val_bytes);
      }
    }
    progress_.documents += static_cast<int64_t>(group_.size());
    progress_.text_bytes += group_bytes_;
    progress_.tokens = writer.train_tokens() + writer.val_tokens();
    group_.clear();
    group_bytes_ = 0;
    if (options_.progress) {
      options_.progress(progress_);
    }
  }

  Encoded encode(const Document& document) const {
    Encoded encoded;
    const std::string_view text = document.text;
    size_t cut = text.size();
    if (split_by_ == SplitBy::kPosition) {
      cut = cut_of(text, options_.val_fraction);
    } else if (held_out(text, options_.val_fraction, options_.seed)) {
      cut = 0;
    }
    encoded.train_bytes = static_cast<int64_t>(cut);
    encoded.val_bytes = static_cast<int64_t>(text.size() - cut);
    encoded.train = tokens_of(document, text.substr(0, cut), true, cut == text.size());
    encoded.val = tokens_of(document, text.substr(cut), cut == 0, true);
    return encoded;
  }

  std::vector<int32_t> tokens_of(const Document& document, std::string_view part, bool begins,
                                 bool ends) const {
    if (part.empty()) {
      return {};
    }
    std::vector<int32_t> tokens;
    try {
      tokens = tokenizer_.encode(part, {.ignore_special_tokens_in_text = true});
    } catch (const Error& error) {
      MDN_THROW("{}: {}", document.place, error.what());
    }
    if (begins && bos_.has_value()) {
      tokens.insert(tokens.begin(), *bos_);
    }
    if (ends && eos_.has_value()) {
      tokens.push_back(*eos_);
    }
    return tokens;
  }

  void check_splits(const DatasetWriter& writer) const {
    MDN_CHECK(progress_.documents > 0, "{}{} no text: all documents are empty",
              options_.sources.front().string(),
              options_.sources.size() > 1 ? " and the other sources hold" : ": holds");
    const char* advice = split_by_ == SplitBy::kDocument
                             ? "with so few documents use --split position, or another --seed"
                             : "the text is too short for it";
    MDN_CHECK(writer.train_tokens() > 0,
              "all {} documents fell into the held-out split (--val-fraction {}); {}",
              progress_.documents, options_.val_fraction, advice);
    MDN_CHECK(options_.val_fraction == 0.0 || writer.val_tokens() > 0,
              "nothing of {} documents fell into the held-out split (--val-fraction {}); {}, or "
              "--val-fraction 0",
              progress_.documents, options_.val_fraction, advice);
  }

  const Tokenizer& tokenizer_;
  const PrepareOptions& options_;
  SplitBy split_by_;
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
  Manifest manifest_;
  PrepareProgress progress_;
  std::vector<Document> group_;
  int64_t group_bytes_ = 0;
};

}  // namespace

const char* name_of(SplitBy split) {
  return split == SplitBy::kAuto ? "auto" : split == SplitBy::kDocument ? "document" : "position";
}

SplitBy split_by_from_name(const std::string& name) {
  for (const auto split : {SplitBy::kAuto, SplitBy::kDocument, SplitBy::kPosition}) {
    if (name == name_of(split)) {
      return split;
    }
  }
  MDN_THROW("a split by '{}'; allowed are auto, document and position", name);
}

Manifest prepare(const Tokenizer& tokenizer, const std::string& tokenizer_name,
                 const PrepareOptions& options) {
  return Preparation(tokenizer, tokenizer_name, options).run();
}

}  // namespace mdn::data
