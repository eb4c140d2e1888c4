// The safetensors reader: an accepted file's tensors must tile its data and agree with their
// shapes.
#include "mdn/io/safetensors.h"

#include "fuzz/invariant.h"
#include "mdn/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    mdn::Metadata metadata;
    const std::vector<mdn::TensorView> tensors =
        mdn::parse_safetensors(bytes, "fuzz.safetensors", &metadata);
    size_t covered = 0;
    for (const mdn::TensorView& tensor : tensors) {
      MDN_FUZZ_REQUIRE(tensor.data.size() == mdn::byte_count(tensor));
      MDN_FUZZ_REQUIRE(tensor.data.data() >= bytes.data());
      MDN_FUZZ_REQUIRE(tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size());
      covered += tensor.data.size();
    }
    MDN_FUZZ_REQUIRE(covered <= size - 8);
  } catch (const mdn::Error&) {
  }
  return 0;
}
