// tokenizer.json: one that is accepted must encode any text, or say why not, and give it back if it
// says that it is lossless.
#include "fuzz/invariant.h"
#include "mdn/core/error.h"
#include "mdn/tokenizer/bpe_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string json(reinterpret_cast<const char*>(data), size);
  std::unique_ptr<mdn::BpeTokenizer> tokenizer;
  try {
    tokenizer = std::make_unique<mdn::BpeTokenizer>(json, "fuzz/tokenizer.json");
  } catch (const mdn::Error&) {
    return 0;
  }
  for (const char* text :
       {"", "ab abc  12 é e\u0301 <s>\n中文😀", " \xFF\xC3 a\xE4\xB8z", "aaaaaaaabbbb"}) {
    try {
      const std::vector<int32_t> ids = tokenizer->encode(text, {.add_special_tokens = true});
      for (const int32_t id : ids) {
        MDN_FUZZ_REQUIRE(id >= 0 && id < tokenizer->vocab_size());
      }
      if (tokenizer->is_lossless()) {
        MDN_FUZZ_REQUIRE(tokenizer->decode(tokenizer->encode(text)) == text);
      }
    } catch (const mdn::Error&) {
      MDN_FUZZ_REQUIRE(!tokenizer->is_plain_bytes());
    }
  }
  return 0;
}
