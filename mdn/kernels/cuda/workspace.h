// Memory that a caller provides and that is divided here: places on multiples of 256 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdn::kernels::cuda {

inline constexpr size_t kPlace = 256;

constexpr size_t round_up(size_t bytes) {
  return (bytes + kPlace - 1) / kPlace * kPlace;
}

/// Takes arrays one behind the other, each from a multiple of 256 bytes on. Without memory it
/// counts their bytes alone, and what it gives is null.
class Arrays {
 public:
  explicit Arrays(char* memory) : memory_(memory) {}

  template <class Element>
  Element* take(int64_t count) {
    char* at = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += round_up(static_cast<size_t>(count) * sizeof(Element));
    return reinterpret_cast<Element*>(at);
  }
  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  size_t bytes_ = 0;
};

}  // namespace mdn::kernels::cuda
