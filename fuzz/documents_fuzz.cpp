// The readers of text and JSONL. The first byte says how to read the rest: JSONL by its two lowest
// bits 0 (a line's text must be what the JSON reader finds there), text otherwise (documents and
// separators must make up the file again), of the format found out where bit 2 is set.
#include "mdn/data/documents.h"

#include "fuzz/invariant.h"
#include "fuzz/scratch_file.h"
#include "mdn/core/error.h"
#include "mdn/io/json.h"

namespace {

using mdn::data::Document;
using mdn::data::DocumentOptions;
using mdn::data::DocumentReader;
using mdn::data::SourceFormat;

/// Line `number` of `text`, from 1.
std::string line_of(const std::string& text, const std::string& place) {
  int64_t number = std::stoll(place.substr(place.rfind(':') + 1));
  size_t start = 0;
  while (--number > 0) {
    start = text.find('\n', start) + 1;
  }
  return text.substr(start, text.find('\n', start) - start);
}

void read(const std::string& text, const DocumentOptions& options) {
  const ScratchFile file(text);
  DocumentReader reader(file.path(), options);
  const bool plain = reader.stream().compression() == mdn::data::Compression::kNone;
  MDN_FUZZ_REQUIRE(reader.format() != SourceFormat::kAuto);
  std::string joined;
  Document document;
  bool first = true;
  while (reader.next(document)) {
    if (plain && reader.format() == SourceFormat::kJsonl) {
      const mdn::Json line = mdn::parse_json(line_of(text, document.place), "line");
      MDN_FUZZ_REQUIRE(line.at(options.field) == document.text);
    }
    joined += (first ? "" : options.separator) + document.text;
    first = false;
  }
  if (plain && reader.format() == SourceFormat::kText) {
    // A separator at the very end divides nothing from nothing.
    MDN_FUZZ_REQUIRE(joined == text || joined + options.separator == text);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) {
    return 0;
  }
  DocumentOptions options;
  const int kind = data[0] & 3;
  options.format = (data[0] & 4) != 0 ? SourceFormat::kAuto
                   : kind == 0        ? SourceFormat::kJsonl
                                      : SourceFormat::kText;
  options.separator = kind == 1 ? "\n\n" : kind == 2 ? "<|endoftext|>" : "";
  if ((data[0] & 8) != 0) {
    options.largest_document = 100;
  }
  try {
    read(std::string(reinterpret_cast<const char*>(data) + 1, size - 1), options);
  } catch (const mdn::Error&) {
  }
  return 0;
}
