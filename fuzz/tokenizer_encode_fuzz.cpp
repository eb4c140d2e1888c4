// Encoding of any bytes: the first byte chooses the tokenizer and options, the rest is the text.
// Lossless tokenizers must give it back, whole and streamed.
#include <array>

#include "fuzz/invariant.h"
#include "mdn/tokenizer/bpe_tokenizer.h"
#include "mdn/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::array<std::unique_ptr<mdn::Tokenizer>, 4> tokenizers = [] {
    const std::string folder = MDN_TEST_DATA "/tokenizers/";
    return std::array{mdn::load_tokenizer(folder + "gpt2"), mdn::load_tokenizer(folder + "llama3"),
                      mdn::load_tokenizer(folder + "qwen"),
                      mdn::load_tokenizer(folder + "options")};
  }();
  if (size == 0) {
    return 0;
  }
  const auto& tokenizer = dynamic_cast<const mdn::BpeTokenizer&>(*tokenizers[data[0] % 4]);
  const mdn::EncodeOptions options = {.add_special_tokens = false,
                                      .ignore_special_tokens_in_text = (data[0] & 4) != 0};
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::vector<int32_t> ids = tokenizer.encode(text, options);
  const std::string decoded = tokenizer.decode(ids);
  MDN_FUZZ_REQUIRE(!tokenizer.is_lossless() || decoded == text);
  mdn::StreamDecoder stream(tokenizer);
  std::string joined;
  for (const int32_t id : ids) {
    joined += stream.push(id);
    MDN_FUZZ_REQUIRE(joined.size() <= decoded.size());
  }
  MDN_FUZZ_REQUIRE(joined + stream.finish() == decoded);
  // A second pass, with the words now remembered, gives the same.
  MDN_FUZZ_REQUIRE(tokenizer.encode(text, options) == ids);
  return 0;
}
