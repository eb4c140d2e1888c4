#include "mdn/data/documents.h"

#include <zlib.h>
#include <zstd.h>

#include "mdn/io/hash.h"
#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string gzip(const std::string& text) {
  z_stream stream = {};
  deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  ZSTD_CCtx* context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1);
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress2(context, out.data(), out.size(), text.data(), text.size()));
  ZSTD_freeCCtx(context);
  return out;
}

/// Text that packs badly, so that cut files end in the middle of it.
std::string noise(size_t size) {
  std::string text;
  uint64_t x = 88172645463325252ULL;
  while (text.size() < size) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    text += fmt::format("{:x}\n", x);
  }
  return text.substr(0, size);
}

class Documents : public FolderTest {
 protected:
  std::vector<std::string> read(const std::string& name, const std::string& content,
                                const DocumentOptions& options = {}) {
    DocumentReader reader(write(name, content), options);
    std::vector<std::string> texts;
    places_.clear();
    Document document;
    while (reader.next(document)) {
      texts.push_back(document.text);
      places_.push_back(document.place);
    }
    EXPECT_FALSE(reader.next(document));
    format_ = reader.format();
    compression_ = reader.stream().compression();
    EXPECT_EQ(reader.stream().file_sha256(), sha256_hex(content));
    EXPECT_EQ(reader.stream().file_bytes(), static_cast<int64_t>(content.size()));
    return texts;
  }
  std::string read_error(const std::string& name, const std::string& content,
                         const DocumentOptions& options = {}) {
    return error_of([&] { read(name, content, options); });
  }

  std::vector<std::string> places_;
  SourceFormat format_ = SourceFormat::kAuto;
  Compression compression_ = Compression::kNone;
};

TEST_F(Documents, ATextFileIsOneDocument) {
  EXPECT_THAT(read("a", "one\r\n\xff\xfe two\n"), ElementsAre("one\r\n\xff\xfe two\n"));
  EXPECT_EQ(format_, SourceFormat::kText);
  EXPECT_THAT(read("a", ""), ElementsAre());
  EXPECT_THAT(read("a", "x"), ElementsAre("x"));
  const std::string large = noise(5'000'000);
  EXPECT_THAT(read("a", large), ElementsAre(large));
}

TEST_F(Documents, SeparatorsDivideText) {
  const DocumentOptions options{
      .format = SourceFormat::kAuto, .field = "text", .separator = "<|end|>"};
  EXPECT_THAT(read("a", "one<|end|>two<|end|><|end|>three<|end|>", options),
              ElementsAre("one", "two", "", "three"));
  EXPECT_THAT(read("a", "<|end|>x", options), ElementsAre("", "x"));
  EXPECT_THAT(read("a", "x<|end|", options), ElementsAre("x<|end|"));
  EXPECT_THAT(read("a", "x<|en<|end|>y", options), ElementsAre("x<|en", "y"));
  EXPECT_THAT(places_[1], HasSubstr("from byte 12"));
}

// A separator that lies across the end of what was read at once, at each of its bytes.
TEST_F(Documents, SeparatorsAreFoundAcrossReads) {
  const std::string mark = "<|end|>";
  for (size_t shift = 0; shift <= mark.size(); ++shift) {
    const std::string first((1 << 20) - shift, 'a');
    const std::string second((3 << 20) + 17, 'b');
    EXPECT_THAT(read("a", first + mark + second + mark + "c", {.separator = mark}),
                ElementsAre(first, second, "c"));
  }
}

TEST_F(Documents, JsonLinesAreDocuments) {
  const std::string lines =
      "{\"text\": \"one\\n\\u00e9\", \"id\": 1, \"meta\": {\"text\": \"not this\", \"a\": [1, "
      "{}]}}\n"
      "\n  \t\r\n"
      "{\"id\": [[\"text\"]], \"text\": \"two\"}\r\n"
      "{\"text\": \"\"}";
  EXPECT_THAT(read("a.jsonl", lines), ElementsAre("one\n\xc3\xa9", "two", ""));
  EXPECT_THAT(places_[1], HasSubstr("a.jsonl:4"));
  EXPECT_EQ(format_, SourceFormat::kJsonl);
  EXPECT_THAT(read("any-name", lines), ElementsAre("one\n\xc3\xa9", "two", ""));
  EXPECT_THAT(read("any-name", lines, {.format = SourceFormat::kText}), ElementsAre(lines));
  EXPECT_THAT(read("a", "{\"body\": \"x\"}\n", {.field = "body"}), ElementsAre("x"));
}

TEST_F(Documents, TextThatOpensWithABraceStaysText) {
  for (const char* text : {"{ not json\n", "{\"text\": \"a\"} and more\n", "[1]\n", "\"text\"\n"}) {
    EXPECT_THAT(read("a.txt", text), ElementsAre(text));
    EXPECT_EQ(format_, SourceFormat::kText);
  }
}

TEST_F(Documents, JsonErrorsNameLineAndColumn) {
  const std::string good = "{\"text\": \"a\"}\n\n";
  const auto error = [&](const std::string& line) { return read_error("a.jsonl", good + line); };
  EXPECT_THAT(error("{\"text\": \"b}"), HasSubstr("a.jsonl:3:13: not valid JSON"));
  EXPECT_THAT(error("{\"text\": 3}"), HasSubstr("a.jsonl:3: the field \"text\" is no string"));
  EXPECT_THAT(error("{\"text\": null}"), HasSubstr("is no string"));
  EXPECT_THAT(error("{\"text\": [\"a\"]}"), HasSubstr("is no string"));
  EXPECT_THAT(error("{\"text\": {\"text\": \"a\"}}"), HasSubstr("is no string"));
  EXPECT_THAT(error("{\"txt\": \"a\"}"), HasSubstr("a.jsonl:3: has no field \"text\""));
  EXPECT_THAT(error("{\"text\": \"a\", \"text\": \"b\"}"), HasSubstr("stands twice"));
  EXPECT_THAT(error("[\"text\"]"), HasSubstr("no JSON object"));
  EXPECT_THAT(error("\"text\""), HasSubstr("no JSON object"));
  EXPECT_THAT(error("{\"text\": \"a\"} {}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("{\"text\": \"\xff\"}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("{\"text\": \"a\", \"n\": 1e999}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error("plain"), HasSubstr("not valid JSON"));
}

TEST_F(Documents, DeepJsonDoesNotOverflowTheStack) {
  const std::string deep(1'000'000, '[');
  EXPECT_THAT(read_error("a.jsonl", "{\"x\": " + deep), HasSubstr("not valid JSON"));
}

TEST_F(Documents, PackedFilesAreSeenFromTheirContent) {
  const std::string text = noise(3'000'000);
  EXPECT_THAT(read("plain-name", gzip(text)), ElementsAre(text));
  EXPECT_EQ(compression_, Compression::kGzip);
  EXPECT_THAT(read("plain-name", zstd(text)), ElementsAre(text));
  EXPECT_EQ(compression_, Compression::kZstd);
  EXPECT_THAT(read("lie.gz", text), ElementsAre(text));
  EXPECT_EQ(compression_, Compression::kNone);
  EXPECT_THAT(read("a.jsonl.zst", zstd("{\"text\": \"x\"}\n")), ElementsAre("x"));
  EXPECT_THAT(read("a", gzip("{\"text\": \"x\"}\n")), ElementsAre("x"));
}

TEST_F(Documents, MembersAndFramesAreJoined) {
  EXPECT_THAT(read("a", gzip("one ") + gzip("") + gzip("two")), ElementsAre("one two"));
  const std::string skipped("\x50\x2a\x4d\x18\x03\0\0\0abc", 11);
  EXPECT_THAT(read("a", skipped + zstd("one ") + zstd("") + skipped + zstd("two")),
              ElementsAre("one two"));
}

TEST_F(Documents, TruncationIsFoundAtEveryByte) {
  const std::string text = noise(300);
  for (const std::string& packed : {gzip(text), zstd(text)}) {
    for (size_t size = 4; size < packed.size(); ++size) {
      EXPECT_THAT(read_error("a", packed.substr(0, size)), HasSubstr("truncated")) << size;
    }
    EXPECT_THAT(read_error("a", packed + packed.substr(0, packed.size() / 2)),
                HasSubstr("truncated"));
  }
  EXPECT_THAT(read_error("a", gzip(text).substr(0, 150)), HasSubstr("(byte 150 of the file, "));
}

// Some bits carry no text: a deflate stream is padded to whole bytes. So a flip must either be
// found or change nothing.
TEST_F(Documents, CorruptionIsFoundAtEveryByte) {
  const std::string text = noise(300);
  int found = 0;
  int tried = 0;
  for (const std::string& packed : {gzip(text), zstd(text)}) {
    // The magic numbers say what is read; bytes 4 to 9 of a gzip header are times and hints.
    for (size_t at = 4; at < packed.size(); ++at) {
      std::string bad = packed;
      bad[at] = static_cast<char>(bad[at] ^ 0x10);
      ++tried;
      try {
        EXPECT_THAT(read("a", bad), ElementsAre(text)) << "byte " << at;
      } catch (const Error&) {
        ++found;
      }
    }
  }
  EXPECT_GE(found, tried - 10);
  EXPECT_THAT(read_error("a", gzip(text) + "garbage"), HasSubstr("corrupt gzip data"));
  EXPECT_THAT(read_error("a", zstd(text) + "garbage"), HasSubstr("corrupt zstd data"));
}

TEST_F(Documents, OtherFormatsAreNamed) {
  EXPECT_THAT(read_error("a", std::string("\xfd"
                                          "7zXZ\0...",
                                          9)),
              HasSubstr("an xz file"));
  EXPECT_THAT(read_error("a", "BZh91AY&SY........"), HasSubstr("a bzip2 file"));
  EXPECT_THAT(read_error("a", "PK\x03\x04........"), HasSubstr("a zip file"));
  EXPECT_THAT(read("a", "BZh is three letters"), ElementsAre("BZh is three letters"));
  EXPECT_THAT(error_of([&] { DocumentReader(folder_, {}); }), HasSubstr("is a folder"));
  EXPECT_THAT(error_of([&] { DocumentReader(folder_ / "none", {}); }), HasSubstr("cannot open"));
}

TEST_F(Documents, LargeDocumentsAreRefusedWithAdvice) {
  DocumentOptions options;
  options.separator = "|";
  options.largest_document = 10;
  EXPECT_THAT(read("a", "1234567890|1234567890", options), testing::SizeIs(2));
  EXPECT_THAT(read_error("a", "12|12345678901|1", options),
              HasSubstr("more than 10 bytes (from byte 3 of the text); divide it"));
  EXPECT_THAT(read_error("a.jsonl", "{\"text\": \"abc\"}", options), HasSubstr("line must be"));
}

TEST_F(Documents, FormatNames) {
  for (const auto format : {SourceFormat::kAuto, SourceFormat::kText, SourceFormat::kJsonl}) {
    EXPECT_EQ(source_format_from_name(name_of(format)), format);
  }
  EXPECT_THROW(source_format_from_name("csv"), Error);
}

}  // namespace
}  // namespace mdn::data
