#include "mdn/evaluate/vocabulary.h"

#include <fmt/format.h>

#include "mdn/io/json.h"
#include "mdn/tokenizer/bpe_tokenizer.h"

namespace mdn::evaluate {

std::unique_ptr<Tokenizer> numbered_tokenizer(int64_t vocab) {
  const ByteTokenizer bytes;
  if (vocab <= bytes.vocab_size()) {
    return std::make_unique<ByteTokenizer>();
  }
  // Entries of the vocabulary that no merge leads to.
  OrderedJson json = OrderedJson::parse(ByteTokenizer::json());
  for (int64_t id = bytes.vocab_size(); id < vocab; ++id) {
    json["model"]["vocab"][fmt::format("<{}>", id)] = id;
  }
  return std::make_unique<BpeTokenizer>(json.dump() + "\n", "the numbered tokenizer", "");
}

}  // namespace mdn::evaluate
