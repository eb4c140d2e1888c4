// The JSON reader and the typed getters: accepted text must survive writing and reading again.
#include "mdn/io/json.h"

#include "fuzz/invariant.h"
#include "mdn/core/error.h"

namespace {

template <typename Get>
void attempt(Get&& get) {
  try {
    get();
  } catch (const mdn::Error&) {
  }
}

void read_all(const mdn::Json& json) {
  attempt([&] {
    const mdn::JsonObject object(json, "fuzz.json");
    for (const auto& [key, value] : json.items()) {
      attempt([&, &k = key] { object.integer(k, -5, 100); });
      attempt([&, &k = key] { object.real(k, 0.0, 1.0); });
      attempt([&, &k = key] { object.boolean_or(k, true); });
      attempt([&, &k = key] { object.string(k, {"a", "b"}); });
      attempt([&, &k = key] { object.integers(k, 0); });
      attempt([&, &k = key] { object.strings(k); });
      attempt([&, &k = key] { read_all(object.object(k).json()); });
    }
    object.check_keys({"a", "b"});
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    const mdn::Json json = mdn::parse_json(text, "fuzz.json");
    MDN_FUZZ_REQUIRE(mdn::parse_json(json.dump(), "again") == json);
    read_all(json);
  } catch (const mdn::Error&) {
  }
  return 0;
}
