// What tests of mdn/evaluate share: the harness's numbers, and a tokenizer of bytes with a bos.
#pragma once

#include <filesystem>
#include <string>

#include "mdn/io/json.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::evaluate {

inline std::filesystem::path data_file(const std::string& name) {
  return std::filesystem::path(MDN_TEST_DATA) / "evaluate" / name;
}

/// tests/evaluate/make_expected.py wrote it.
inline const Json& expected() {
  static const Json json = read_json(data_file("expected.json"));
  return json;
}

}  // namespace mdn::evaluate
