// manifest.json of a data folder: what is accepted must be written and read again as the same, and
// name files of its own folder only.
#include "mdn/data/manifest.h"

#include "fuzz/invariant.h"
#include "mdn/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mdn::data::Manifest manifest;
  try {
    manifest = mdn::data::parse_manifest(std::string(reinterpret_cast<const char*>(data), size),
                                         "manifest.json");
  } catch (const mdn::Error&) {
    return 0;
  }
  for (const auto* split : {&manifest.train, &manifest.val}) {
    MDN_FUZZ_REQUIRE(split->tokens() >= 0 && split->documents() >= 0 && split->text_bytes() >= 0);
    for (const auto& shard : split->shards) {
      MDN_FUZZ_REQUIRE(std::filesystem::path(shard.file).filename() == shard.file);
    }
  }
  const std::string written = manifest.to_json().dump();
  MDN_FUZZ_REQUIRE(mdn::data::parse_manifest(written, "again").to_json().dump() == written);
  return 0;
}
