// Files as streams of plain bytes: gzip and zstd are recognised by their first bytes, whatever the
// file is called, and unpacked on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "mdn/io/hash.h"

namespace mdn::data {

enum class Compression { kNone, kGzip, kZstd };
const char* name_of(Compression compression);  // "none", "gzip", "zstd"

/// Reads a file once, from start to end. Several gzip members or zstd frames after one another are
/// one stream, as the command-line tools have it. Errors name the file, the byte of the file and
/// the byte of the unpacked text. Memory does not depend on the file's size (zstd: its window, at
/// most 2 GiB for files written with --long=31).
class InputStream {
 public:
  /// Throws when the path cannot be opened, is a folder, or is packed in a way that is not read
  /// here (xz, bzip2, zip, parquet).
  explicit InputStream(const std::filesystem::path& path);
  ~InputStream();
  InputStream(const InputStream&) = delete;
  InputStream& operator=(const InputStream&) = delete;

  /// Fills `out` and returns the number of bytes; fewer than out.size() only at the end. Throws on
  /// corrupt and on truncated input.
  size_t read(std::span<char> out);

  Compression compression() const { return compression_; }
  /// Bytes of the file taken so far: progress, against its size.
  int64_t file_bytes() const { return file_bytes_; }
  /// SHA-256 of the file. Only once read() has come to the end.
  std::string file_sha256();

 private:
  class Unpacker;
  class GzipUnpacker;
  class ZstdUnpacker;

  void refill();
  /// "PATH: WHAT (byte A of the file, B of the text)"
  [[noreturn]] void fail(const std::string& what) const;

  std::string name_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<char> buffer_;
  std::span<const char> pending_;  // of buffer_, not consumed yet
  bool at_end_ = false;            // the file's last byte is in buffer_
  int64_t file_bytes_ = 0;         // read into buffer_ so far
  int64_t text_bytes_ = 0;         // given out
  Sha256 hash_;
  Compression compression_ = Compression::kNone;
  std::unique_ptr<Unpacker> unpacker_;
};

}  // namespace mdn::data
