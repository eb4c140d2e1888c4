// gzip and zstd input. The first byte says what the rest is: 0, a file as it is (how it is cut into
// reads must not matter); 1 and 2, text that is packed here by zlib or zstd and must come back, and
// must be refused when the file is cut short.
#include <zlib.h>
#include <zstd.h>

#include <algorithm>

#include "fuzz/invariant.h"
#include "fuzz/scratch_file.h"
#include "mdn/core/error.h"
#include "mdn/data/input_stream.h"

namespace {

using mdn::data::Compression;
using mdn::data::InputStream;

constexpr size_t kMostText = size_t{1} << 18;  // of a file that unpacks without end: enough

/// Up to kMostText bytes of the file, in reads of `piece`; false when it is refused.
bool read(std::string_view bytes, size_t piece, std::string& text, Compression& compression) {
  text.clear();
  try {
    const ScratchFile file(bytes);
    InputStream stream(file.path());
    compression = stream.compression();
    std::string buffer(piece, '\0');
    while (text.size() < kMostText) {
      const size_t got = stream.read(buffer);
      text.append(buffer, 0, got);
      if (got < piece) {
        MDN_FUZZ_REQUIRE(stream.file_bytes() == static_cast<int64_t>(bytes.size()));
        MDN_FUZZ_REQUIRE(stream.file_sha256().size() == 64);
        break;
      }
    }
    return true;
  } catch (const mdn::Error&) {
    return false;
  }
}

void read_as_it_is(std::string_view bytes) {
  std::string text, again;
  Compression compression = Compression::kNone;
  const bool accepted = read(bytes, 65536, text, compression);
  for (const size_t piece : {size_t{257}, kMostText}) {
    const bool same = read(bytes, piece, again, compression);
    // Cut off at kMostText, one way of reading may not have come to where the file goes wrong.
    const bool whole = std::max(text.size(), again.size()) < kMostText;
    MDN_FUZZ_REQUIRE(!whole || (same == accepted && (!same || again == text)));
  }
  MDN_FUZZ_REQUIRE(!accepted || compression != Compression::kNone || text.size() >= kMostText ||
                   text == bytes);
}

std::string gzip(std::string_view text) {
  z_stream stream = {};
  constexpr int kGzip = 16 + MAX_WBITS;
  MDN_FUZZ_REQUIRE(deflateInit2(&stream, 6, Z_DEFLATED, kGzip, 8, Z_DEFAULT_STRATEGY) == Z_OK);
  std::string packed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  MDN_FUZZ_REQUIRE(deflate(&stream, Z_FINISH) == Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string zstd(std::string_view text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

/// `cut` bytes are taken off the packed file.
void read_packed(std::string packed, size_t cut, std::string_view text) {
  std::string back;
  Compression compression = Compression::kNone;
  MDN_FUZZ_REQUIRE(read(packed, 1000, back, compression) && back == text);
  MDN_FUZZ_REQUIRE(compression != Compression::kNone);
  MDN_FUZZ_REQUIRE(read(packed + packed, 4096, back, compression));  // one member after another
  MDN_FUZZ_REQUIRE(back == std::string(text) + std::string(text));
  packed.resize(packed.size() - std::min(cut, packed.size()));
  const bool accepted = read(packed, 4096, back, compression);
  // Cut down to less than its mark, the file is plain text.
  MDN_FUZZ_REQUIRE(!accepted || compression == Compression::kNone);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) {
    return 0;
  }
  const std::string_view rest(reinterpret_cast<const char*>(data), size);
  switch (data[0] % 3) {
    case 0:
      read_as_it_is(rest.substr(1));
      break;
    case 1:
      read_packed(gzip(rest.substr(2)), 1 + data[1], rest.substr(2));
      break;
    default:
      read_packed(zstd(rest.substr(2)), 1 + data[1], rest.substr(2));
  }
  return 0;
}
