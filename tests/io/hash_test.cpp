#include "mdn/io/hash.h"

#include <gtest/gtest.h>

#include "tests/io/scratch.h"

namespace mdn {
namespace {

// The vectors of FIPS 180-2, appendix B, and the empty message.
TEST(Sha256, KnownValues) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(sha256_hex(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PartsGiveTheWhole) {
  const std::string text(1000, 'x');
  for (const size_t part : {1u, 63u, 64u, 65u, 999u}) {
    Sha256 hash;
    for (size_t i = 0; i < text.size(); i += part) {
      hash.update(std::string_view(text).substr(i, part));
    }
    EXPECT_EQ(hash.hex(), sha256_hex(text)) << part;
  }
}

TEST(Sha256, IsUsedOnce) {
  Sha256 hash;
  hash.digest();
  EXPECT_EQ(error_of([&] { hash.update("x"); }), "SHA-256: update after digest");
  EXPECT_EQ(error_of([&] { hash.digest(); }), "SHA-256: digest taken twice");
}

}  // namespace
}  // namespace mdn
