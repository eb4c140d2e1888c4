// From text to a data folder: reads documents, divides them into a training and a held-out split,
// tokenises them on all threads and writes shards.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mdn/data/documents.h"
#include "mdn/data/manifest.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::data {

enum class SplitBy {
  kAuto,      // position when all sources together hold one document, else document
  kDocument,  // a document is held out when a hash of the seed and its text falls below the
              // fraction: it depends on no other document, and copies share a side
  kPosition   // the last fraction of every document's bytes is held out, cut before a UTF-8
              // character: for one running text. The cut is no document boundary: neither bos nor
              // eos is put there
};
const char* name_of(SplitBy split);                   // "auto", "document", "position"
SplitBy split_by_from_name(const std::string& name);  // throws listing the three

struct PrepareProgress {
  int64_t file_bytes = 0;        // taken of the sources
  int64_t total_file_bytes = 0;  // of all sources that are regular files
  int64_t text_bytes = 0;
  int64_t documents = 0;
  int64_t tokens = 0;
};

struct PrepareOptions {
  std::vector<std::filesystem::path> sources;
  std::filesystem::path output;
  bool replace = false;
  DocumentOptions documents;
  SplitBy split_by = SplitBy::kAuto;
  double val_fraction = 0.1;  // in [0, 1)
  int64_t seed = 0;           // >= 0
  int64_t shard_tokens = 100'000'000;
  /// Put the tokenizer's bos before, and its eos after each document, where it has them. A bos that
  /// is the same token as the eos is left out: one token between documents says all.
  bool bos = true;
  bool eos = true;
  /// Called now and then, and at the end.
  std::function<void(const PrepareProgress&)> progress;
};

/// Writes options.output and returns its manifest. The result depends on sources, tokenizer and
/// options alone, not on the number of threads. Special tokens spelled out in a text are read as
/// plain text: a text cannot end its document. Empty documents are left out and counted. Throws
/// when a split that was asked for would be empty.
Manifest prepare(const Tokenizer& tokenizer, const std::string& tokenizer_name,
                 const PrepareOptions& options);

}  // namespace mdn::data
