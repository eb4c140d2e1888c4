#include "mdn/data/documents.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mdn/core/error.h"
#include "mdn/io/json.h"

namespace mdn::data {
namespace {

constexpr size_t kReadBytes = size_t{1} << 20;
constexpr const char* kBlank = " \t\r\n";

/// Keeps one string of the outermost object and no tree: lines may be long and their other fields
/// longer.
class FieldHandler : public nlohmann::json_sax<Json> {
 public:
  explicit FieldHandler(const std::string& field) : field_(field) {}

  bool key(string_t& name) override {
    at_field_ = depth_ == 1 && name == field_;
    if (at_field_ && seen_++ > 0) {
      return refuse("stands twice");
    }
    return true;
  }
  bool string(string_t& value) override {
    if (at_field_) {
      text_ = std::move(value);
      at_field_ = false;
    }
    return scalar();
  }
  bool null() override { return scalar(); }
  bool boolean(bool) override { return scalar(); }
  bool number_integer(number_integer_t) override { return scalar(); }
  bool number_unsigned(number_unsigned_t) override { return scalar(); }
  bool number_float(number_float_t, const string_t&) override { return scalar(); }
  bool binary(binary_t&) override { return scalar(); }
  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return depth_ == 0 ? no_object() : open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    column_ = position;
    const std::string what = error.what();
    const size_t column = what.find("column ");
    const size_t reason = column == std::string::npos ? column : what.find(": ", column);
    problem_ = "not valid JSON: " + (reason == std::string::npos ? what : what.substr(reason + 2));
    if (problem_.find("ill-formed UTF-8") != std::string::npos) {
      problem_.resize(problem_.find(';'));  // what was read last is no text to show
    }
    return false;
  }

  bool found() const { return seen_ > 0; }
  std::string& text() { return text_; }
  const std::string& problem() const { return problem_; }
  size_t column() const { return column_; }  // 0: none

 private:
  bool refuse(const std::string& what) {
    problem_ = fmt::format("the field \"{}\" {}", field_, what);
    return false;
  }
  bool no_object() {
    problem_ = "no JSON object; every line must be one";
    return false;
  }
  bool scalar() { return at_field_ ? refuse("is no string") : depth_ == 0 ? no_object() : true; }
  bool open() {
    if (at_field_) {
      return refuse("is no string");
    }
    ++depth_;
    return true;
  }
  bool close() {
    --depth_;
    return true;
  }

  const std::string& field_;
  int64_t depth_ = 0;
  int seen_ = 0;
  bool at_field_ = false;
  size_t column_ = 0;
  std::string text_;
  std::string problem_;
};

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

}  // namespace

const char* name_of(SourceFormat format) {
  return format == SourceFormat::kAuto ? "auto" : format == SourceFormat::kText ? "text" : "jsonl";
}

SourceFormat source_format_from_name(const std::string& name) {
  for (const auto format : {SourceFormat::kAuto, SourceFormat::kText, SourceFormat::kJsonl}) {
    if (name == name_of(format)) {
      return format;
    }
  }
  MDN_THROW("a source format called '{}'; allowed are auto, text and jsonl", name);
}

DocumentReader::DocumentReader(const std::filesystem::path& path, const DocumentOptions& options)
    : name_(path.string()), options_(options), stream_(path) {
  format_ = options.format;
  if (format_ == SourceFormat::kAuto) {
    std::filesystem::path bare = path;
    if (bare.extension() == ".gz" || bare.extension() == ".zst") {
      bare = bare.stem();
    }
    const bool named = ends_with(bare.string(), ".jsonl") || ends_with(bare.string(), ".ndjson");
    if (!named) {
      fill();  // a first line beyond the first MiB does not make a file JSONL
    }
    format_ = named ? SourceFormat::kJsonl : detect();
  }
}

SourceFormat DocumentReader::detect() const {
  const size_t first = buffer_.find_first_not_of(kBlank);
  if (first == std::string::npos || buffer_[first] != '{') {
    return SourceFormat::kText;
  }
  const size_t end = buffer_.find('\n', first);
  if (end == std::string::npos && !at_end_) {
    return SourceFormat::kText;
  }
  return Json::accept(buffer_.substr(first, end - first)) ? SourceFormat::kJsonl
                                                          : SourceFormat::kText;
}

/// Reads more of the stream behind what is left; false at the end.
bool DocumentReader::fill() {
  if (at_end_) {
    return false;
  }
  buffer_.erase(0, start_);
  start_ = 0;
  const size_t held = buffer_.size();
  // Steps grow with what is held, or a large document would be moved again and again.
  const size_t step = std::max(kReadBytes, held / 2);
  buffer_.resize(held + step);
  const size_t got = stream_.read(std::span(buffer_).subspan(held));
  buffer_.resize(held + got);
  at_end_ = got < step;
  return true;
}

bool DocumentReader::take_until(const std::string& mark, std::string& out) {
  size_t from = start_;  // nothing before it can begin a mark
  while (true) {
    const size_t found = mark.empty() ? std::string::npos : buffer_.find(mark, from);
    const bool ended = found != std::string::npos;
    const size_t length = (ended ? found : buffer_.size()) - start_;
    MDN_CHECK(static_cast<int64_t>(length) <= options_.largest_document,
              "{}: a document of more than {} bytes (from byte {} of the text); {}", name_,
              options_.largest_document, consumed_,
              format_ == SourceFormat::kText ? "divide it with --separator or into several files"
                                             : "every line must be shorter");
    if (ended) {
      out.assign(buffer_, start_, length);
      start_ = found + mark.size();
      consumed_ += static_cast<int64_t>(length + mark.size());
      return true;
    }
    if (at_end_) {
      out.assign(buffer_, start_, length);
      start_ = buffer_.size();
      consumed_ += static_cast<int64_t>(length);
      finished_ = true;
      return length > 0;
    }
    const size_t overlap = mark.empty() ? 0 : std::min(length, mark.size() - 1);
    fill();
    from = length - overlap;  // fill() moved what is left to the front
  }
}

bool DocumentReader::next(Document& document) {
  if (finished_) {
    return false;
  }
  return format_ == SourceFormat::kJsonl ? next_line(document) : next_text(document);
}

bool DocumentReader::next_text(Document& document) {
  document.place = fmt::format("{} (from byte {} of its text)", name_, consumed_);
  return take_until(options_.separator, document.text);
}

bool DocumentReader::next_line(Document& document) {
  std::string line;
  while (!finished_ && take_until("\n", line)) {
    ++line_;
    if (line.find_first_not_of(kBlank) == std::string::npos) {
      continue;
    }
    document.place = fmt::format("{}:{}", name_, line_);
    FieldHandler handler(options_.field);
    const bool parsed = Json::sax_parse(line, &handler);
    MDN_CHECK(parsed, "{}{}: {}", document.place,
              handler.column() > 0 ? fmt::format(":{}", handler.column()) : "", handler.problem());
    MDN_CHECK(handler.found(), "{}: has no field \"{}\"; --field names the one that holds the text",
              document.place, options_.field);
    document.text = std::move(handler.text());
    return true;
  }
  return false;
}

}  // namespace mdn::data
