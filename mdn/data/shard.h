// The token shard: one file of token ids and the documents they form.
//
// Little-endian; every region starts at a multiple of 8 bytes.
//
//   header   64 B   "MDNTOKS1", u32 version = 1, u32 token width w (1, 2 or 4),
//                   u64 vocabulary size, 32 B SHA-256 of the tokenizer, 8 B zero
//   tokens   w * n  ids, then zeros up to a multiple of 8
//   ends     8 * d  u64 for each document: the token after its last; document i is
//                   [ends[i - 1], ends[i]), the last end is n
//   digests  32 * k SHA-256 of each MiB of all bytes before this region, the last one shorter
//   trailer  96 B   u64 n, u64 d, u64 bytes of text, u64 file size, 24 B zero, "MDNTEND1",
//                   32 B SHA-256 of the digests and of the trailer's 64 bytes before this
//
// The counts stand at the end because they are known last, which lets a shard be written in one
// pass; a file that was cut short has no trailer. The trailer's checksum covers the digests and
// these all the rest, so it names the content of the whole file. Digests of pieces, not one of the
// whole: checking runs on all threads and says which piece is wrong.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "mdn/io/file.h"
#include "mdn/io/hash.h"

namespace mdn::data {

inline constexpr int64_t kShardHeaderBytes = 64;
inline constexpr int64_t kShardTrailerBytes = 96;
inline constexpr int64_t kShardBlockBytes = int64_t{1} << 20;

/// What every shard of a data set has in common.
struct ShardFormat {
  int token_bytes = 1;                     // 1, 2 or 4
  int64_t vocab_size = 256;                // ids are below it
  std::array<uint8_t, 32> tokenizer = {};  // SHA-256 of the tokenizer
};

/// The narrowest width that holds every id: 1 up to 256, 2 up to 65,536, 4 up to 2^31.
int token_bytes_for(int64_t vocab_size);

enum class Verify {
  kStructure,  // header, trailer, sizes, document ends, digests' own checksum: not the tokens
  kFull        // and every byte against its digest
};

/// Writes a shard in one pass; the file appears whole, when finish() returns, or not at all.
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path path, const ShardFormat& format);

  /// Appends a document; it may be empty. Throws on an id outside the vocabulary.
  void add_document(std::span<const int32_t> tokens, int64_t text_bytes);
  /// Returns the checksum of the trailer, in hexadecimal.
  std::string finish();

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(ends_.size()); }
  int64_t text_bytes() const { return text_bytes_; }
  int64_t file_bytes() const { return static_cast<int64_t>(file_.size()); }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void write(std::span<const std::byte> bytes);

  AtomicFile file_;
  ShardFormat format_;
  int64_t tokens_ = 0;
  int64_t text_bytes_ = 0;
  std::vector<uint64_t> ends_;
  std::vector<std::byte> encoded_;
  Sha256 block_;
  int64_t block_filled_ = 0;
  std::vector<uint8_t> digests_;
};

/// A shard's content over bytes in memory, which must outlive it. Nothing in them is trusted: every
/// count is checked before it is used, whatever `verify`. `name` opens every message.
class ShardView {
 public:
  ShardView() = default;
  ShardView(std::span<const std::byte> bytes, std::string name, Verify verify);

  const ShardFormat& format() const { return format_; }
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return documents_; }
  int64_t text_bytes() const { return text_bytes_; }
  const std::string& name() const { return name_; }
  /// The trailer's checksum, in hexadecimal.
  const std::string& checksum() const { return checksum_; }

  /// First token of document d in [0, documents()]; documents() gives tokens().
  int64_t document_start(int64_t d) const;
  /// The document that holds token `at` in [0, tokens()).
  int64_t document_of(int64_t at) const;
  /// Copies tokens [first, first + out.size()). Throws beyond the end and on ids that are not in
  /// the vocabulary.
  void read(int64_t first, std::span<int64_t> out) const;

 private:
  void verify_blocks(std::span<const std::byte> covered, std::span<const std::byte> digests) const;

  ShardFormat format_;
  int64_t tokens_ = 0;
  int64_t documents_ = 0;
  int64_t text_bytes_ = 0;
  const std::byte* ids_ = nullptr;
  const std::byte* ends_ = nullptr;
  std::string name_;
  std::string checksum_;
};

/// A mapped shard file.
class ShardReader {
 public:
  ShardReader(const std::filesystem::path& path, Verify verify)
      : file_(path), view_(file_.bytes(), path.string(), verify) {}
  const ShardView& view() const { return view_; }
  int64_t file_bytes() const { return static_cast<int64_t>(file_.size()); }

 private:
  MappedFile file_;
  ShardView view_;
};

}  // namespace mdn::data
