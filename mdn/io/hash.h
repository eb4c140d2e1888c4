// SHA-256 (FIPS 180-4), the content hash of tokenizers, token shards and checkpoints.
//
// Why SHA-256 and not a 64-bit hash: a stored value can be checked with `sha256sum`, it never
// changes with a library's version, different content cannot share it by bad luck, and CPUs with
// SHA instructions do it faster than a disk reads. Computed by OpenSSL's libcrypto.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace mdn {

/// Incremental: update() any number of times, then digest() or hex() once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;

  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  std::array<uint8_t, 32> digest();
  std::string hex();  // 64 lower-case digits

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string sha256_hex(std::span<const std::byte> bytes);
std::string sha256_hex(std::string_view text);

}  // namespace mdn
