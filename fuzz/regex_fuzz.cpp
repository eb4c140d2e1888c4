// Patterns of tokenizer.json: the input is a pattern, a zero byte, and a text. Matches must come in
// order and on character boundaries.
#include "mdn/tokenizer/regex.h"

#include "fuzz/invariant.h"
#include "mdn/core/error.h"
#include "mdn/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Patterns that take long are legal; a fuzzer has better things to do than to wait for them.
  constexpr size_t kLongestPattern = 64;
  constexpr size_t kLongestText = 64;
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(input.find('\0'), input.size());
  const std::string pattern = input.substr(0, zero);
  const std::string given = zero < input.size() ? input.substr(zero + 1, kLongestText) : "";
  if (pattern.size() > kLongestPattern) {
    return 0;
  }
  const std::string text = mdn::utf8_replace_invalid(given);
  try {
    const mdn::Regex regex(pattern, "fuzz");
    mdn::Regex::Matcher matcher(regex, text);
    size_t begin = 0;
    size_t end = 0;
    size_t done = 0;
    size_t count = 0;
    while (matcher.next(begin, end)) {
      MDN_FUZZ_REQUIRE(done <= begin && begin <= end && end <= text.size());
      MDN_FUZZ_REQUIRE(begin == text.size() || mdn::utf8_length(text.substr(begin)) > 0);
      MDN_FUZZ_REQUIRE(end == text.size() || mdn::utf8_length(text.substr(end)) > 0);
      MDN_FUZZ_REQUIRE(++count <= 2 * text.size() + 2);
      done = end;
    }
  } catch (const mdn::Error&) {
  }
  return 0;
}
