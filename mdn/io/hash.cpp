#include "mdn/io/hash.h"

#include <openssl/evp.h>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn {

struct Sha256::Context {
  EVP_MD_CTX* handle = EVP_MD_CTX_new();
  bool finished = false;
  ~Context() { EVP_MD_CTX_free(handle); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  MDN_CHECK(context_->handle != nullptr &&
                EVP_DigestInit_ex(context_->handle, EVP_sha256(), nullptr) == 1,
            "libcrypto offers no SHA-256");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;
Sha256& Sha256::operator=(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
  MDN_CHECK(!context_->finished, "SHA-256: update after digest");
  MDN_CHECK(EVP_DigestUpdate(context_->handle, bytes.data(), bytes.size()) == 1,
            "SHA-256: libcrypto failed on {} bytes", bytes.size());
}

void Sha256::update(std::string_view text) {
  update(as_bytes(text));
}

std::array<uint8_t, 32> Sha256::digest() {
  MDN_CHECK(!context_->finished, "SHA-256: digest taken twice");
  context_->finished = true;
  std::array<uint8_t, 32> bytes = {};
  MDN_CHECK(EVP_DigestFinal_ex(context_->handle, bytes.data(), nullptr) == 1,
            "SHA-256: libcrypto failed");
  return bytes;
}

std::string Sha256::hex() {
  std::string text;
  for (const uint8_t byte : digest()) {
    text += fmt::format("{:02x}", byte);
  }
  return text;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex();
}

std::string sha256_hex(std::string_view text) {
  return sha256_hex(as_bytes(text));
}

}  // namespace mdn
