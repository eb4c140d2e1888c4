#include "mdn/tokenizer/bpe_tokenizer.h"

#include <algorithm>
#include <limits>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"
#include "mdn/io/json.h"
#include "mdn/tokenizer/byte_alphabet.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

// Ids size tables, so a file with a single huge id must not take all memory.
constexpr int64_t kLargestId = int64_t{1} << 24;

const Json kNull;

const Json& member(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

void require_null(const JsonObject& object, std::string_view key) {
  if (object.has(key)) {
    object.fail(key, "null: nothing else is supported");
  }
}

}  // namespace

BpeTokenizer::BpeTokenizer(const std::string& json, const std::string& name, std::string config)
    : BpeTokenizer(json, parse_json(json, name), name, std::move(config)) {}

BpeTokenizer::BpeTokenizer(std::string json, const Json& parsed, const std::string& name,
                           std::string config)
    : json_(std::move(json)),
      config_(std::move(config)),
      vocab_(read_vocab(parsed, name)),
      model_(read_model(parsed, name)),
      normalizer_(member(parsed, "normalizer"), name + ": normalizer"),
      pre_tokenizer_(member(parsed, "pre_tokenizer"), name + ": pre_tokenizer") {
  const JsonObject object(parsed, name);
  object.string_or("version", "1.0", {"1.0"});
  require_null(object, "truncation");
  require_null(object, "padding");
  if (object.has("added_tokens")) {
    read_added_tokens(object.array("added_tokens"), name + ": added_tokens");
  }
  read_post_processor(member(parsed, "post_processor"), name + ": post_processor");
  read_decoder(member(parsed, "decoder"), name + ": decoder");
  read_config(name + " (tokenizer_config.json)");
}

std::unordered_map<std::string, int32_t> BpeTokenizer::read_vocab(const Json& parsed,
                                                                  const std::string& name) {
  const JsonObject model = JsonObject(parsed, name).object("model");
  // Early files leave the type out, and only BPE has both vocab and merges.
  model.string_or("type", "BPE", {"BPE"});
  const JsonObject entries = model.object("vocab");
  std::unordered_map<std::string, int32_t> vocab;
  std::vector<bool> used;
  for (const auto& [token, value] : entries.json().items()) {
    const auto id = static_cast<size_t>(entries.integer(token, 0, kLargestId));
    if (id >= used.size()) {
      used.resize(id + 1);
    }
    MDN_CHECK(!used[id], "{}: id {} is given to two tokens, one of them {}", entries.place(), id,
              brief_json(token));
    used[id] = true;
    vocab.emplace(token, static_cast<int32_t>(id));
    set_bytes(static_cast<int32_t>(id), from_alphabet(token).value_or(token));
  }
  return vocab;
}

BpeModel BpeTokenizer::read_model(const Json& parsed, const std::string& name) {
  const JsonObject model = JsonObject(parsed, name).object("model");
  model.check_keys({"type", "dropout", "unk_token", "continuing_subword_prefix",
                    "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab",
                    "merges"});
  if (model.real_or("dropout", 0.0) != 0.0) {
    model.fail("dropout", "null or 0: encoding must not be random");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.string_or(key, "").empty()) {
      model.fail(key, "null or empty: byte-level BPE has none");
    }
  }
  if (model.boolean_or("byte_fallback", false)) {
    model.fail("byte_fallback", "false: only byte-level BPE is supported, not SentencePiece's");
  }
  BpeModel::Options options;
  options.ignore_merges = model.boolean_or("ignore_merges", false);
  options.fuse_unknown = model.boolean_or("fuse_unk", false);
  const auto id_of = [&](const std::string& token) {
    const auto found = vocab_.find(token);
    return found == vocab_.end() ? std::nullopt : std::optional(found->second);
  };
  if (model.has("unk_token")) {
    options.unknown = id_of(model.string("unk_token"));
    if (!options.unknown) {
      model.fail("unk_token", "a token of the vocabulary");
    }
  }

  std::vector<BpeModel::Merge> merges;
  const Json& list = model.array("merges");
  merges.reserve(list.size());
  for (const Json& entry : list) {
    std::string left;
    std::string right;
    if (entry.is_string()) {
      const auto& text = entry.get_ref<const std::string&>();
      if (text.starts_with("#version")) {
        continue;  // the first line of a merges.txt
      }
      const size_t space = text.find(' ');
      MDN_CHECK(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
                "{}: merges holds {}; an entry must be \"LEFT RIGHT\" or [LEFT, RIGHT]",
                model.place(), brief_json(entry));
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      MDN_CHECK(
          entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string(),
          "{}: merges holds {}; an entry must be \"LEFT RIGHT\" or [LEFT, RIGHT]", model.place(),
          brief_json(entry));
      left = entry[0].get<std::string>();
      right = entry[1].get<std::string>();
    }
    for (const std::string& token : {left, right, left + right}) {
      MDN_CHECK(id_of(token).has_value(), "{}: merge {} needs token {}, which vocab lacks",
                model.place(), merges.size(), brief_json(token));
    }
    merges.push_back({*id_of(left), *id_of(right), *id_of(left + right)});
  }

  std::unordered_map<std::string, int32_t> tokens;
  for (const auto& [token, id] : vocab_) {
    if (const std::optional<std::string> bytes = from_alphabet(token)) {
      tokens.emplace(*bytes, id);
    }
  }
  return {std::move(tokens), merges, options, name};
}

void BpeTokenizer::set_bytes(int32_t id, std::string bytes) {
  const auto index = static_cast<size_t>(id);
  if (index >= bytes_.size()) {
    bytes_.resize(index + 1);
    special_.resize(index + 1);
  }
  bytes_[index] = std::move(bytes);
}

void BpeTokenizer::read_added_tokens(const Json& tokens, const std::string& name) {
  // Hugging Face's loader numbers tokens that the vocabulary lacks itself, from its size on, and
  // does not look at the file's ids. Where the two differ, programs would disagree about the ids.
  auto next = static_cast<int64_t>(vocab_.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string place = fmt::format("{}[{}]", name, i);
    const JsonObject entry(tokens[i], place);
    entry.check_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.content = entry.string("content");
    if (token.content.empty()) {
      continue;
    }
    token.special = entry.boolean_or("special", false);
    token.normalized = entry.boolean_or("normalized", !token.special);
    token.single_word = entry.boolean_or("single_word", false);
    token.lstrip = entry.boolean_or("lstrip", false);
    token.rstrip = entry.boolean_or("rstrip", false);
    const int64_t given = entry.integer("id", 0, kLargestId);
    const auto known = vocab_.find(token.content);
    const int64_t expected = known != vocab_.end() ? known->second : next;
    if (given != expected) {
      entry.fail("id", fmt::format("{}, {}", expected,
                                   known != vocab_.end()
                                       ? "the id of this token in the vocabulary"
                                       : "as added tokens count on from the vocabulary's size"));
    }
    next += known != vocab_.end() ? 0 : 1;
    token.id = static_cast<int32_t>(given);
    MDN_CHECK(added_.emplace(token.content, token.id).second, "{}: {} is added twice", place,
              brief_json(token.content));
    // The bytes are those of the text that the token is found by, even where a vocabulary of bytes
    // would read its characters as others.
    set_bytes(token.id, token.content);
    special_[static_cast<size_t>(token.id)] = token.special;
    strips_ = strips_ || token.lstrip || token.rstrip;
    if (token.normalized) {
      const std::string text =
          normalizer_.empty() ? token.content : normalizer_.apply(token.content);
      normalized_tokens_.add(text, token);
    } else {
      raw_tokens_.add(token.content, token);
    }
  }
}

void BpeTokenizer::read_post_processor(const Json& json, const std::string& place) {
  if (json.is_null()) {
    return;
  }
  const JsonObject object(json, place);
  const std::string type = object.string("type");
  if (type == "Sequence") {
    for (const Json& part : object.array("processors")) {
      read_post_processor(part, place);
    }
  } else if (type == "TemplateProcessing") {
    read_template(object);
  } else {
    MDN_CHECK(type == "ByteLevel",  // trims offsets, which are not computed
              "{}: the post_processor \"{}\" is not supported; supported are null, ByteLevel, "
              "TemplateProcessing and Sequence",
              place, type);
  }
}

void BpeTokenizer::read_template(const JsonObject& object) {
  const std::string& place = object.place();
  const JsonObject special_tokens = object.object("special_tokens");
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  bool seen_text = false;
  for (const Json& piece : object.array("single")) {
    const JsonObject item(piece, place + ": single");
    if (item.has("Sequence")) {
      item.object("Sequence").string("id", {"A"});
      MDN_CHECK(!seen_text, "{}: single holds the text twice", place);
      seen_text = true;
      continue;
    }
    const std::string token = item.object("SpecialToken").string("id");
    for (const int64_t id :
         special_tokens.object(token).integers("ids", 0, std::numeric_limits<int32_t>::max())) {
      MDN_CHECK(id < vocab_size(), "{}: id {} of {} is outside the vocabulary of {} ids", place, id,
                brief_json(token), vocab_size());
      (seen_text ? after : before).push_back(static_cast<int32_t>(id));
    }
  }
  MDN_CHECK(seen_text, "{}: single must hold {{\"Sequence\": {{\"id\": \"A\"}}}}", place);
  // A later template in a sequence goes around what an earlier one gave.
  before_.insert(before_.begin(), before.begin(), before.end());
  after_.insert(after_.end(), after.begin(), after.end());
}

void BpeTokenizer::read_decoder(const Json& json, const std::string& place) const {
  if (json.is_null()) {
    return;  // the bytes joined, which is all a byte-level BPE can mean
  }
  const JsonObject object(json, place);
  const std::string type = object.string("type");
  if (type == "Sequence") {
    for (const Json& part : object.array("decoders")) {
      read_decoder(part, place);
    }
    return;
  }
  MDN_CHECK(type == "ByteLevel" || type == "Fuse",
            "{}: the decoder \"{}\" is not supported; supported are null, ByteLevel, Fuse and "
            "Sequence",
            place, type);
}

void BpeTokenizer::read_config(const std::string& place) {
  if (config_.empty()) {
    return;
  }
  const Json json = parse_json(config_, place);
  const JsonObject config(json, place);
  bos_ = config_token(config, "bos_token");
  eos_ = config_token(config, "eos_token");
}

std::optional<int32_t> BpeTokenizer::config_token(const JsonObject& config,
                                                  std::string_view key) const {
  if (!config.has(key)) {
    return std::nullopt;
  }
  const Json& value = config.json().at(std::string(key));
  const std::string token =
      value.is_object() ? config.object(key).string("content") : config.string(key);
  const std::optional<int32_t> id = token_id(token);
  if (!id) {
    config.fail(key, "a token of tokenizer.json");
  }
  return id;
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text,
                                          const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_special_tokens) {
    ids = before_;
  }
  bool may_prefix = true;
  for (const Utf8Run& run : utf8_runs(text)) {
    if (run.valid) {
      encode_valid(run.text, may_prefix, options, ids);
    } else {
      model_.encode(run.text, ids);
      may_prefix = false;
    }
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), after_.begin(), after_.end());
  }
  return ids;
}

void BpeTokenizer::encode_valid(std::string_view text, bool may_prefix,
                                const EncodeOptions& options, std::vector<int32_t>& ids) const {
  const bool plain = options.ignore_special_tokens_in_text;
  for (const AddedTokenMatcher::Piece& piece : raw_tokens_.split(text, plain)) {
    if (piece.id) {
      ids.push_back(*piece.id);
      may_prefix = true;
      continue;
    }
    std::string storage;
    std::string_view normalized = piece.text;
    if (!normalizer_.empty()) {
      storage = normalizer_.apply(piece.text);
      normalized = storage;
    }
    for (const AddedTokenMatcher::Piece& part : normalized_tokens_.split(normalized, plain)) {
      if (part.id) {
        ids.push_back(*part.id);
      } else {
        pre_tokenizer_.words(part.text, may_prefix,
                             [&](std::string_view word) { model_.encode(word, ids); });
      }
      may_prefix = true;
    }
  }
}

std::string_view BpeTokenizer::token_bytes(int32_t id) const {
  MDN_CHECK(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {} ids", id,
            vocab_size());
  return bytes_[static_cast<size_t>(id)];
}

bool BpeTokenizer::is_special(int32_t id) const {
  MDN_CHECK(id >= 0 && id < vocab_size(), "token id {} is outside the vocabulary of {} ids", id,
            vocab_size());
  return special_[static_cast<size_t>(id)];
}

std::optional<int32_t> BpeTokenizer::token_id(std::string_view token) const {
  if (const auto found = added_.find(std::string(token)); found != added_.end()) {
    return found->second;
  }
  const auto found = vocab_.find(to_alphabet(token));
  return found == vocab_.end() ? std::nullopt : std::optional(found->second);
}

std::string BpeTokenizer::hash() const {
  return sha256_hex(json_);
}

void BpeTokenizer::save(const std::filesystem::path& folder) const {
  write_file_atomically(folder / kTokenizerFile, json_);
  if (!config_.empty()) {
    write_file_atomically(folder / kTokenizerConfigFile, config_);
  }
}

bool BpeTokenizer::is_plain_bytes() const {
  if (vocab_size() != 256 || model_.has_merges() || !added_.empty() || !before_.empty() ||
      !after_.empty() || !is_lossless()) {
    return false;
  }
  for (int32_t byte = 0; byte < 256; ++byte) {
    if (model_.byte_id(static_cast<uint8_t>(byte)) != byte) {
      return false;
    }
  }
  return true;
}

bool BpeTokenizer::is_lossless() const {
  if (!normalizer_.empty() || !pre_tokenizer_.keeps_text() || strips_) {
    return false;
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (model_.byte_id(static_cast<uint8_t>(byte)) < 0) {
      return false;
    }
  }
  return true;
}

}  // namespace mdn
