// The token shard reader, on the bytes as they are and once more with their checksums made right,
// which is where a hostile file would start: documents must divide the tokens, and every place that
// the counts allow must be readable or refused.
#include "mdn/data/shard.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "fuzz/invariant.h"
#include "mdn/core/error.h"
#include "mdn/io/hash.h"

namespace {

using mdn::data::ShardView;
using mdn::data::Verify;

constexpr size_t kDigest = 32;

void use(std::span<const std::byte> bytes, Verify verify) {
  try {
    const ShardView shard(bytes, "fuzz.mdnt", verify);
    MDN_FUZZ_REQUIRE(shard.tokens() * shard.format().token_bytes <=
                     static_cast<int64_t>(bytes.size()));
    MDN_FUZZ_REQUIRE(shard.document_start(0) == 0);
    MDN_FUZZ_REQUIRE(shard.document_start(shard.documents()) == shard.tokens());
    for (int64_t d = 0; d < shard.documents(); ++d) {
      MDN_FUZZ_REQUIRE(shard.document_start(d) <= shard.document_start(d + 1));
    }
    for (int64_t at = 0; at < shard.tokens(); ++at) {
      const int64_t d = shard.document_of(at);
      MDN_FUZZ_REQUIRE(shard.document_start(d) <= at && at < shard.document_start(d + 1));
    }
    std::vector<int64_t> tokens(static_cast<size_t>(shard.tokens()));
    shard.read(0, tokens);
    for (const int64_t token : tokens) {
      MDN_FUZZ_REQUIRE(token >= 0 && token < shard.format().vocab_size);
    }
  } catch (const mdn::Error&) {
  }
}

/// File size, the digest of the only block, and the trailer's checksum, made right.
std::string reseal(std::string bytes) {
  const uint64_t size = bytes.size();
  const size_t trailer = bytes.size() - static_cast<size_t>(mdn::data::kShardTrailerBytes);
  const size_t digest = trailer - kDigest;
  std::memcpy(bytes.data() + trailer + 24, &size, sizeof size);
  const auto put = [&](size_t at, size_t from, size_t length) {
    mdn::Sha256 hash;
    hash.update(std::string_view(bytes).substr(from, length));
    const auto value = hash.digest();
    std::memcpy(bytes.data() + at, value.data(), value.size());
  };
  put(digest, 0, digest);
  put(trailer + 64, digest, kDigest + 64);
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  use(bytes, Verify::kFull);
  use(bytes, Verify::kStructure);
  const auto fixed =
      static_cast<size_t>(mdn::data::kShardHeaderBytes + mdn::data::kShardTrailerBytes) + kDigest;
  if (size >= fixed) {
    const std::string sealed = reseal(std::string(reinterpret_cast<const char*>(data), size));
    use(mdn::as_bytes(sealed), Verify::kFull);
  }
  return 0;
}
