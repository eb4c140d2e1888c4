#include "mdn/data/input_stream.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>
#include <system_error>

#include "mdn/core/error.h"

namespace mdn::data {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
// What `zstd --long=31` writes; the library's default would refuse above 27.
constexpr int kLargestZstdWindowLog = 31;

using namespace std::string_view_literals;

constexpr std::string_view kGzipMagic = "\x1f\x8b"sv;
constexpr std::string_view kZstdMagic = "\x28\xb5\x2f\xfd"sv;

struct OtherFormat {
  std::string_view magic;
  const char* name;
};
constexpr OtherFormat kOtherFormats[] = {
    {"\xfd"
     "7zXZ\0"sv,
     "an xz file"},
    {"BZh"sv, "a bzip2 file"},  // and a digit, and the block's mark: checked below
    {"PK\x03\x04"sv, "a zip file"},
    {"PAR1"sv, "a parquet file"},
    {"MDNTOKS1"sv, "a token shard already"}};

bool starts_with(std::span<const char> bytes, std::string_view magic) {
  return bytes.size() >= magic.size() && std::memcmp(bytes.data(), magic.data(), magic.size()) == 0;
}

// Frames that carry no text may come first: 0x184D2A50 to 0x184D2A5F, little-endian.
bool starts_with_skippable_frame(std::span<const char> bytes) {
  return bytes.size() >= 4 && (static_cast<unsigned char>(bytes[0]) & 0xf0) == 0x50 &&
         starts_with(bytes.subspan(1), "\x2a\x4d\x18"sv);
}

}  // namespace

const char* name_of(Compression compression) {
  switch (compression) {
    case Compression::kNone:
      return "none";
    case Compression::kGzip:
      return "gzip";
    case Compression::kZstd:
      return "zstd";
  }
  MDN_THROW("a compression of number {}", static_cast<int>(compression));
}

/// Turns packed bytes into text, as far as either side goes.
class InputStream::Unpacker {
 public:
  struct Step {
    size_t taken = 0;
    size_t made = 0;
    std::string problem;  // empty: none
  };
  virtual ~Unpacker() = default;
  virtual Step unpack(std::span<const char> packed, std::span<char> text) = 0;
  /// Whether the bytes so far end a member or frame, so that the file may end here.
  virtual bool complete() const = 0;
};

class InputStream::GzipUnpacker : public Unpacker {
 public:
  GzipUnpacker() {
    constexpr int kGzipOnly = 16;  // added to the window's bits: a gzip header, no zlib one
    MDN_CHECK(inflateInit2(&stream_, MAX_WBITS + kGzipOnly) == Z_OK, "zlib cannot start: {}",
              stream_.msg == nullptr ? "out of memory" : stream_.msg);
  }
  GzipUnpacker(const GzipUnpacker&) = delete;
  GzipUnpacker& operator=(const GzipUnpacker&) = delete;
  ~GzipUnpacker() override { inflateEnd(&stream_); }

  Step unpack(std::span<const char> packed, std::span<char> text) override {
    if (complete_ && !packed.empty()) {
      inflateReset(&stream_);  // another member follows
      complete_ = false;
    }
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
    stream_.avail_in = static_cast<uInt>(packed.size());
    stream_.next_out = reinterpret_cast<Bytef*>(text.data());
    const auto space = static_cast<uInt>(std::min(text.size(), size_t{1} << 30));
    stream_.avail_out = space;
    const int code = inflate(&stream_, Z_NO_FLUSH);
    Step step{packed.size() - stream_.avail_in, space - stream_.avail_out, ""};
    complete_ = code == Z_STREAM_END;
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
      step.problem =
          fmt::format("corrupt gzip data: {}", stream_.msg == nullptr ? zError(code) : stream_.msg);
    }
    return step;
  }
  bool complete() const override { return complete_; }

 private:
  z_stream stream_ = {};
  bool complete_ = false;
};

class InputStream::ZstdUnpacker : public Unpacker {
 public:
  ZstdUnpacker() : stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    MDN_CHECK(stream_ != nullptr, "zstd cannot start: out of memory");
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, kLargestZstdWindowLog);
  }

  Step unpack(std::span<const char> packed, std::span<char> text) override {
    ZSTD_inBuffer in{packed.data(), packed.size(), 0};
    ZSTD_outBuffer out{text.data(), text.size(), 0};
    const size_t hint = ZSTD_decompressStream(stream_.get(), &out, &in);
    Step step{in.pos, out.pos, ""};
    if (ZSTD_isError(hint) != 0) {
      step.problem = fmt::format("corrupt zstd data: {}", ZSTD_getErrorName(hint));
    } else if (in.pos > 0 || out.pos > 0) {
      complete_ = hint == 0;
    }
    return step;
  }
  bool complete() const override { return complete_; }

 private:
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  bool complete_ = false;
};

InputStream::InputStream(const std::filesystem::path& path)
    : name_(path.string()), file_(nullptr, std::fclose), buffer_(kBufferBytes) {
  MDN_CHECK(!std::filesystem::is_directory(path), "{}: is a folder; name the files in it", name_);
  file_.reset(std::fopen(path.c_str(), "rb"));
  MDN_CHECK(file_ != nullptr, "{}: cannot open: {}", name_, std::generic_category().message(errno));
  refill();
  if (starts_with(pending_, kGzipMagic)) {
    compression_ = Compression::kGzip;
    unpacker_ = std::make_unique<GzipUnpacker>();
  } else if (starts_with(pending_, kZstdMagic) || starts_with_skippable_frame(pending_)) {
    compression_ = Compression::kZstd;
    unpacker_ = std::make_unique<ZstdUnpacker>();
  }
  for (const OtherFormat& other : kOtherFormats) {
    const bool only_looks_so =
        other.magic == "BZh"sv &&
        (pending_.size() < 10 || !starts_with(pending_.subspan(4), "\x31\x41\x59\x26\x53\x59"sv));
    MDN_CHECK(!starts_with(pending_, other.magic) || only_looks_so,
              "{}: is {}; text and JSONL are read, plain or packed with gzip or zstd", name_,
              other.name);
  }
}

InputStream::~InputStream() = default;

void InputStream::fail(const std::string& what) const {
  MDN_THROW("{}: {} (byte {} of the file, {} of the text)", name_, what,
            file_bytes_ - static_cast<int64_t>(pending_.size()), text_bytes_);
}

void InputStream::refill() {
  const size_t got = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
  if (got < buffer_.size()) {
    if (std::ferror(file_.get()) != 0) {
      fail(fmt::format("cannot be read: {}", std::generic_category().message(errno)));
    }
    at_end_ = true;
  }
  pending_ = std::span<const char>(buffer_).first(got);
  file_bytes_ += static_cast<int64_t>(got);
  hash_.update(std::string_view(pending_.data(), pending_.size()));
}

size_t InputStream::read(std::span<char> out) {
  size_t filled = 0;
  while (filled < out.size()) {
    if (pending_.empty() && !at_end_) {
      refill();
    }
    if (unpacker_ == nullptr) {
      if (pending_.empty()) {
        break;
      }
      const size_t take = std::min(pending_.size(), out.size() - filled);
      std::memcpy(out.data() + filled, pending_.data(), take);
      pending_ = pending_.subspan(take);
      filled += take;
      text_bytes_ += static_cast<int64_t>(take);
      continue;
    }
    const auto step = unpacker_->unpack(pending_, out.subspan(filled));
    pending_ = pending_.subspan(step.taken);
    filled += step.made;
    text_bytes_ += static_cast<int64_t>(step.made);
    if (!step.problem.empty()) {
      fail(step.problem);
    }
    if (step.taken == 0 && step.made == 0 && pending_.empty() && at_end_) {
      if (!unpacker_->complete()) {
        fail(fmt::format("truncated: the {} data ends in the middle", name_of(compression_)));
      }
      break;
    }
    if (step.taken == 0 && step.made == 0 && !pending_.empty()) {
      fail(fmt::format("corrupt {} data: it cannot be unpacked further", name_of(compression_)));
    }
  }
  return filled;
}

std::string InputStream::file_sha256() {
  MDN_CHECK(at_end_ && pending_.empty(), "{}: hashed before it was read to its end", name_);
  return hash_.hex();
}

}  // namespace mdn::data
