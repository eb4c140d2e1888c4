// The documents of a text or JSONL file, one after another.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "mdn/data/input_stream.h"

namespace mdn::data {

enum class SourceFormat {
  kAuto,  // JSONL when the name says so (.jsonl, .ndjson, before .gz, .zst or not), or when the
          // first line that is not blank is a whole JSON object; otherwise text
  kText,
  kJsonl
};
const char* name_of(SourceFormat format);                       // "auto", "text", "jsonl"
SourceFormat source_format_from_name(const std::string& name);  // throws listing the three

struct DocumentOptions {
  SourceFormat format = SourceFormat::kAuto;
  /// JSONL: the key of each line's object whose string is the document. Other keys are ignored.
  std::string field = "text";
  /// Text: what stands between documents, and is no part of them. Empty: the file is one document.
  std::string separator = {};
  /// A document is held in memory while it is tokenised.
  int64_t largest_document = int64_t{4} << 30;  // bytes
};

struct Document {
  std::string text;
  std::string place;  // for messages: "FILE:LINE", or "FILE (from byte N of its text)"
};

/// Text is passed on byte by byte: no change of line ends, no check of its encoding.
class DocumentReader {
 public:
  DocumentReader(const std::filesystem::path& path, const DocumentOptions& options);

  /// Fills `document` and returns true, or returns false at the end. Empty documents are given out;
  /// blank JSONL lines are no documents. Throws on malformed JSON (naming line and column), on a
  /// missing or doubled field, and on documents that are too large.
  bool next(Document& document);

  SourceFormat format() const { return format_; }  // never kAuto
  InputStream& stream() { return stream_; }

 private:
  SourceFormat detect() const;
  bool fill();
  bool next_line(Document& document);
  bool next_text(Document& document);
  /// Takes the buffer up to `mark` and after it, or all of it at the end: false when nothing is
  /// left.
  bool take_until(const std::string& mark, std::string& out);

  std::string name_;
  DocumentOptions options_;
  InputStream stream_;
  SourceFormat format_ = SourceFormat::kText;
  std::string buffer_;
  size_t start_ = 0;       // of what is left in buffer_
  bool at_end_ = false;    // the stream is
  bool finished_ = false;  // the last document was given out
  int64_t consumed_ = 0;   // bytes of the text before start_
  int64_t line_ = 0;
};

}  // namespace mdn::data
