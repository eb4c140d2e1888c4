#include "mdn/data/shard.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"

namespace mdn::data {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and mapped");

constexpr char kHeaderMagic[9] = "MDNTOKS1";
constexpr char kTrailerMagic[9] = "MDNTEND1";
constexpr uint32_t kVersion = 1;
constexpr int64_t kDigestBytes = 32;
constexpr int64_t kLargestVocabulary = int64_t{1} << 31;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t token_bytes;
  uint64_t vocab_size;
  uint8_t tokenizer[32];
  uint8_t zero[8];
};
static_assert(sizeof(Header) == kShardHeaderBytes);

struct Trailer {
  uint64_t tokens;
  uint64_t documents;
  uint64_t text_bytes;
  uint64_t file_bytes;
  uint8_t zero[24];
  char magic[8];
  uint8_t checksum[32];
};
static_assert(sizeof(Trailer) == kShardTrailerBytes);
constexpr size_t kTrailerHashed = offsetof(Trailer, checksum);

// Unaligned on purpose: only files are mapped to aligned addresses, bytes in memory need not be.
template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

std::string hex_of(const uint8_t (&bytes)[32]) {
  std::string text;
  for (const uint8_t byte : bytes) {
    text += fmt::format("{:02x}", byte);
  }
  return text;
}

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// Where the regions start; the sum of all is the file's size.
struct Regions {
  uint64_t ends = 0;
  uint64_t digests = 0;
  uint64_t trailer = 0;
  uint64_t size = 0;
};

// `tokens` and `documents` are at most 2^60, so nothing here passes 2^64.
Regions regions_of(uint64_t tokens, uint64_t documents, uint64_t token_bytes) {
  Regions at;
  at.ends = kShardHeaderBytes + round_up(tokens * token_bytes, 8);
  at.digests = at.ends + 8 * documents;
  const uint64_t blocks = round_up(at.digests, kShardBlockBytes) / kShardBlockBytes;
  at.trailer = at.digests + kDigestBytes * blocks;
  at.size = at.trailer + kShardTrailerBytes;
  return at;
}

/// The largest id of n narrow tokens while they are widened to int64.
template <typename T>
int64_t widen(const std::byte* from, std::span<int64_t> out) {
  int64_t largest = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = static_cast<int64_t>(load<T>(from + i * sizeof(T)));
    largest = std::max(largest, out[i]);
  }
  return largest;
}

template <typename T>
void narrow(std::span<const int32_t> tokens, std::vector<std::byte>& out) {
  out.resize(tokens.size() * sizeof(T));
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto value = static_cast<T>(tokens[i]);
    std::memcpy(out.data() + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

int token_bytes_for(int64_t vocab_size) {
  MDN_CHECK(vocab_size >= 1 && vocab_size <= kLargestVocabulary,
            "a vocabulary of {} tokens; shards hold 1 to {}", vocab_size, kLargestVocabulary);
  return vocab_size <= 256 ? 1 : vocab_size <= 65536 ? 2 : 4;
}

ShardWriter::ShardWriter(std::filesystem::path path, const ShardFormat& format)
    : file_(std::move(path)), format_(format) {
  MDN_CHECK(format.token_bytes == 1 || format.token_bytes == 2 || format.token_bytes == 4,
            "a token width of {} bytes; allowed are 1, 2 and 4", format.token_bytes);
  MDN_CHECK(token_bytes_for(format.vocab_size) <= format.token_bytes,
            "a vocabulary of {} tokens does not fit a width of {} bytes", format.vocab_size,
            format.token_bytes);
  Header header = {};
  std::memcpy(header.magic, kHeaderMagic, sizeof header.magic);
  header.version = kVersion;
  header.token_bytes = static_cast<uint32_t>(format.token_bytes);
  header.vocab_size = static_cast<uint64_t>(format.vocab_size);
  std::copy(format.tokenizer.begin(), format.tokenizer.end(), header.tokenizer);
  write(bytes_of(header));
}

// Every byte goes through here, so that the digests see the file in pieces of a block.
void ShardWriter::write(std::span<const std::byte> bytes) {
  file_.write(bytes);
  while (!bytes.empty()) {
    const auto take = std::min(bytes.size(), static_cast<size_t>(kShardBlockBytes - block_filled_));
    block_.update(bytes.first(take));
    block_filled_ += static_cast<int64_t>(take);
    bytes = bytes.subspan(take);
    if (block_filled_ == kShardBlockBytes) {
      const auto digest = block_.digest();
      digests_.insert(digests_.end(), digest.begin(), digest.end());
      block_ = Sha256();
      block_filled_ = 0;
    }
  }
}

void ShardWriter::add_document(std::span<const int32_t> tokens, int64_t text_bytes) {
  for (const int32_t token : tokens) {
    MDN_CHECK(token >= 0 && token < format_.vocab_size,
              "{}: token {} is outside the vocabulary of {}", file_.path().string(), token,
              format_.vocab_size);
  }
  switch (format_.token_bytes) {
    case 1:
      narrow<uint8_t>(tokens, encoded_);
      break;
    case 2:
      narrow<uint16_t>(tokens, encoded_);
      break;
    default:
      narrow<uint32_t>(tokens, encoded_);
      break;
  }
  write(encoded_);
  tokens_ += static_cast<int64_t>(tokens.size());
  text_bytes_ += text_bytes;
  ends_.push_back(static_cast<uint64_t>(tokens_));
}

std::string ShardWriter::finish() {
  const Regions at = regions_of(static_cast<uint64_t>(tokens_), ends_.size(),
                                static_cast<uint64_t>(format_.token_bytes));
  const std::array<std::byte, 8> zeros = {};
  write(std::span(zeros).first(at.ends - file_.size()));
  write(std::as_bytes(std::span(ends_)));
  if (block_filled_ > 0) {
    const auto digest = block_.digest();
    digests_.insert(digests_.end(), digest.begin(), digest.end());
  }
  Trailer trailer = {};
  trailer.tokens = static_cast<uint64_t>(tokens_);
  trailer.documents = ends_.size();
  trailer.text_bytes = static_cast<uint64_t>(text_bytes_);
  trailer.file_bytes = at.size;
  std::memcpy(trailer.magic, kTrailerMagic, sizeof trailer.magic);
  Sha256 checksum;
  checksum.update(std::as_bytes(std::span(digests_)));
  checksum.update(bytes_of(trailer).first(kTrailerHashed));
  const auto digest = checksum.digest();
  std::copy(digest.begin(), digest.end(), trailer.checksum);
  file_.write(std::as_bytes(std::span(digests_)));
  file_.write(bytes_of(trailer));
  file_.commit();
  return hex_of(trailer.checksum);
}

ShardView::ShardView(std::span<const std::byte> bytes, std::string name, Verify verify)
    : name_(std::move(name)) {
  const uint64_t size = bytes.size();
  MDN_CHECK(size >= sizeof(Header) + sizeof(Trailer),
            "{}: {} bytes are too few for a token shard: it was cut short or is another file",
            name_, size);
  const auto header = load<Header>(bytes.data());
  MDN_CHECK(std::memcmp(header.magic, kHeaderMagic, sizeof header.magic) == 0,
            "{}: is no token shard: it does not start with {}", name_, kHeaderMagic);
  MDN_CHECK(header.version == kVersion, "{}: shard version {}; this program reads version {}",
            name_, header.version, kVersion);
  const auto trailer = load<Trailer>(bytes.data() + size - sizeof(Trailer));
  MDN_CHECK(std::memcmp(trailer.magic, kTrailerMagic, sizeof trailer.magic) == 0,
            "{}: has no shard trailer at its end (byte {}): it was cut short or overwritten", name_,
            size - sizeof(Trailer));
  MDN_CHECK(trailer.file_bytes == size,
            "{}: was written with {} bytes and has {}: it was cut short or joined with another",
            name_, trailer.file_bytes, size);
  const uint32_t width = header.token_bytes;
  MDN_CHECK(width == 1 || width == 2 || width == 4,
            "{}: corrupt header: token width {}; allowed are 1, 2 and 4", name_, width);
  MDN_CHECK(header.vocab_size >= 1 && header.vocab_size <= kLargestVocabulary &&
                token_bytes_for(static_cast<int64_t>(header.vocab_size)) <= static_cast<int>(width),
            "{}: corrupt header: vocabulary of {} at a token width of {}", name_, header.vocab_size,
            width);
  MDN_CHECK(all_zero(header.zero) && all_zero(trailer.zero),
            "{}: corrupt: bytes that must be zero are not", name_);
  // Each at most the file's size, so that no product below passes 64 bits.
  MDN_CHECK(trailer.tokens <= size && trailer.documents <= size / 8 &&
                trailer.text_bytes <= std::numeric_limits<int64_t>::max(),
            "{}: corrupt trailer: {} tokens, {} documents and {} bytes of text in a file of {} "
            "bytes",
            name_, trailer.tokens, trailer.documents, trailer.text_bytes, size);
  const Regions at = regions_of(trailer.tokens, trailer.documents, width);
  MDN_CHECK(at.size == size,
            "{}: corrupt trailer: {} tokens and {} documents need {} bytes, not {}", name_,
            trailer.tokens, trailer.documents, at.size, size);
  const auto digests = bytes.subspan(at.digests, at.trailer - at.digests);
  Sha256 checksum;
  checksum.update(digests);
  checksum.update(bytes.subspan(at.trailer, kTrailerHashed));
  const auto digest = checksum.digest();
  MDN_CHECK(std::equal(digest.begin(), digest.end(), trailer.checksum),
            "{}: corrupt: digests and trailer (bytes {} to {}) do not match their checksum", name_,
            at.digests, size);
  if (verify == Verify::kFull) {
    verify_blocks(bytes.first(at.digests), digests);
  }

  format_.token_bytes = static_cast<int>(width);
  format_.vocab_size = static_cast<int64_t>(header.vocab_size);
  std::copy(std::begin(header.tokenizer), std::end(header.tokenizer), format_.tokenizer.begin());
  tokens_ = static_cast<int64_t>(trailer.tokens);
  documents_ = static_cast<int64_t>(trailer.documents);
  text_bytes_ = static_cast<int64_t>(trailer.text_bytes);
  ids_ = bytes.data() + sizeof(Header);
  ends_ = bytes.data() + at.ends;
  checksum_ = hex_of(trailer.checksum);
  // Readers rely on this order to stay inside the file, so it is checked without the digests too.
  uint64_t last = 0;
  for (int64_t d = 0; d < documents_; ++d) {
    const auto end = load<uint64_t>(ends_ + 8 * d);
    MDN_CHECK(end >= last && end <= trailer.tokens,
              "{}: corrupt document table (byte {}): document {} ends at token {}, after one that "
              "ends at {} of {}",
              name_, at.ends + 8 * static_cast<uint64_t>(d), d, end, last, trailer.tokens);
    last = end;
  }
  MDN_CHECK(last == trailer.tokens,
            "{}: corrupt document table: the documents end at token {} of {}", name_, last,
            trailer.tokens);
}

void ShardView::verify_blocks(std::span<const std::byte> covered,
                              std::span<const std::byte> digests) const {
  const auto blocks = static_cast<int64_t>(digests.size()) / kDigestBytes;
  std::atomic<int64_t> first_bad{blocks};
  parallel_for(blocks, [&](int64_t block, int) {
    const auto from = static_cast<size_t>(block * kShardBlockBytes);
    const auto length = std::min(covered.size() - from, static_cast<size_t>(kShardBlockBytes));
    Sha256 hash;
    hash.update(covered.subspan(from, length));
    const auto digest = hash.digest();
    if (std::memcmp(digest.data(), digests.data() + block * kDigestBytes, kDigestBytes) != 0) {
      int64_t lowest = first_bad.load();
      while (block < lowest && !first_bad.compare_exchange_weak(lowest, block)) {
      }
    }
  });
  const int64_t bad = first_bad.load();
  MDN_CHECK(bad == blocks, "{}: corrupt: bytes {} to {} do not match their checksum", name_,
            bad * kShardBlockBytes,
            std::min(static_cast<int64_t>(covered.size()), (bad + 1) * kShardBlockBytes));
}

int64_t ShardView::document_start(int64_t d) const {
  MDN_CHECK(d >= 0 && d <= documents_, "{}: document {} is asked for; it has {}", name_, d,
            documents_);
  return d == 0 ? 0 : static_cast<int64_t>(load<uint64_t>(ends_ + 8 * (d - 1)));
}

int64_t ShardView::document_of(int64_t at) const {
  MDN_CHECK(at >= 0 && at < tokens_, "{}: token {} is asked for; it has {}", name_, at, tokens_);
  // The first document that ends beyond `at`.
  int64_t low = 0;
  int64_t high = documents_ - 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (document_start(middle + 1) > at) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

void ShardView::read(int64_t first, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  MDN_CHECK(first >= 0 && first <= tokens_ && count <= tokens_ - first,
            "{}: tokens {} to {} are asked for; it has {}", name_, first, first + count, tokens_);
  const std::byte* from = ids_ + first * format_.token_bytes;
  const int64_t largest = format_.token_bytes == 1   ? widen<uint8_t>(from, out)
                          : format_.token_bytes == 2 ? widen<uint16_t>(from, out)
                                                     : widen<uint32_t>(from, out);
  MDN_CHECK(largest < format_.vocab_size,
            "{}: corrupt: token {} among {} to {}, and the vocabulary has {}", name_, largest,
            first, first + count, format_.vocab_size);
}

}  // namespace mdn::data
