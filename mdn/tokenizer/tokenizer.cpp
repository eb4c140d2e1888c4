#include "mdn/tokenizer/tokenizer.h"

#include <array>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"
#include "mdn/io/json.h"
#include "mdn/tokenizer/bpe_tokenizer.h"
#include "mdn/tokenizer/byte_alphabet.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view bytes = token_bytes(id);
    if (!(skip_special_tokens && is_special(id))) {
      text += bytes;
    }
  }
  return text;
}

std::vector<int32_t> ByteTokenizer::encode(std::string_view text, const EncodeOptions&) const {
  std::vector<int32_t> ids(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    ids[i] = static_cast<uint8_t>(text[i]);
  }
  return ids;
}

std::string_view ByteTokenizer::token_bytes(int32_t id) const {
  static const std::array<char, 256> bytes = [] {
    std::array<char, 256> all = {};
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = static_cast<char>(i);
    }
    return all;
  }();
  MDN_CHECK(id >= 0 && id < 256, "token id {} is outside the vocabulary of 256 bytes", id);
  return {&bytes[static_cast<size_t>(id)], 1};
}

std::optional<int32_t> ByteTokenizer::token_id(std::string_view token) const {
  return token.size() == 1 ? std::optional<int32_t>(static_cast<uint8_t>(token.front()))
                           : std::nullopt;
}

const std::string& ByteTokenizer::json() {
  static const std::string text = [] {
    OrderedJson vocab = OrderedJson::object();
    for (unsigned byte = 0; byte < 256; ++byte) {
      const char c = static_cast<char>(byte);
      vocab[to_alphabet({&c, 1})] = byte;
    }
    const OrderedJson byte_level = {{"type", "ByteLevel"},
                                    {"add_prefix_space", false},
                                    {"trim_offsets", true},
                                    {"use_regex", false}};
    OrderedJson model = OrderedJson::object();
    model["type"] = "BPE";
    model["vocab"] = std::move(vocab);
    model["merges"] = OrderedJson::array();
    OrderedJson file = OrderedJson::object();
    file["version"] = "1.0";
    file["added_tokens"] = OrderedJson::array();
    file["pre_tokenizer"] = byte_level;
    file["decoder"] = byte_level;
    file["model"] = std::move(model);
    return file.dump() + "\n";
  }();
  return text;
}

std::string ByteTokenizer::hash() const {
  return sha256_hex(json());
}

void ByteTokenizer::save(const std::filesystem::path& folder) const {
  write_file_atomically(folder / kTokenizerFile, json());
}

std::string StreamDecoder::push(int32_t id) {
  const std::string_view bytes = tokenizer_.token_bytes(id);
  if (skip_special_tokens_ && tokenizer_.is_special(id)) {
    return {};
  }
  pending_ += bytes;
  const size_t whole = pending_.size() - utf8_incomplete_tail(pending_);
  std::string text = pending_.substr(0, whole);
  pending_.erase(0, whole);
  return text;
}

std::string StreamDecoder::finish() {
  std::string rest = std::move(pending_);
  pending_.clear();
  return rest;
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path_or_folder) {
  const bool folder = std::filesystem::is_directory(path_or_folder);
  const std::filesystem::path path = folder ? path_or_folder / kTokenizerFile : path_or_folder;
  const std::filesystem::path config = path.parent_path() / kTokenizerConfigFile;
  auto tokenizer = std::make_unique<BpeTokenizer>(
      read_file(path), path.string(),
      std::filesystem::exists(config) ? read_file(config) : std::string());
  if (tokenizer->is_plain_bytes() && !tokenizer->bos_id() && !tokenizer->eos_id()) {
    return std::make_unique<ByteTokenizer>();
  }
  return tokenizer;
}

}  // namespace mdn
