// Byte-level BPE as Hugging Face's tokenizer.json describes it: GPT-2's, Llama-3's, Qwen's.
//
// A text goes through these steps, in this order:
//   1. Bytes that are not UTF-8 are set apart (utf8.h). Each maximal run of them is a word of its
//      own, encoded from its bytes; steps 2-5 see the text on either side as separate texts, except
//      that add_prefix_space does not put a space after such a run.
//   2. Added tokens that are not "normalized" are found; the rest is normalised; those that are
//      "normalized" are found.
//   3. The pre-tokenizer cuts the rest into words.
//   4. BPE encodes each word.
//   5. On request, the template adds its special tokens.
//
// A file with any component that is not known here is refused with an error that names it: ids that
// silently differ from those a model was trained on are worse than none.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mdn/tokenizer/added_tokens.h"
#include "mdn/tokenizer/bpe_model.h"
#include "mdn/tokenizer/pre_tokenizer.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn {

class BpeTokenizer : public Tokenizer {
 public:
  /// `json`: the content of tokenizer.json. `config`: that of tokenizer_config.json, or empty.
  /// `name` opens error messages.
  BpeTokenizer(const std::string& json, const std::string& name, std::string config = {});

  std::vector<int32_t> encode(std::string_view text,
                              const EncodeOptions& options = {}) const override;
  int32_t vocab_size() const override { return static_cast<int32_t>(bytes_.size()); }
  std::string_view token_bytes(int32_t id) const override;
  bool is_special(int32_t id) const override;
  std::optional<int32_t> token_id(std::string_view token) const override;
  std::optional<int32_t> bos_id() const override { return bos_; }
  std::optional<int32_t> eos_id() const override { return eos_; }
  std::string hash() const override;
  void save(const std::filesystem::path& folder) const override;

  /// Whether it does what ByteTokenizer does.
  bool is_plain_bytes() const;
  /// Whether decode(encode(text)) == text for every text: nothing is normalised, prefixed, removed,
  /// stripped or unknown.
  bool is_lossless() const;

 private:
  BpeTokenizer(std::string json, const Json& parsed, const std::string& name, std::string config);

  std::unordered_map<std::string, int32_t> read_vocab(const Json& parsed, const std::string& name);
  BpeModel read_model(const Json& parsed, const std::string& name);
  void read_added_tokens(const Json& tokens, const std::string& name);
  void read_post_processor(const Json& json, const std::string& place);
  void read_template(const JsonObject& object);
  void read_decoder(const Json& json, const std::string& place) const;
  void read_config(const std::string& place);
  std::optional<int32_t> config_token(const JsonObject& config, std::string_view key) const;
  void set_bytes(int32_t id, std::string bytes);

  void encode_valid(std::string_view text, bool may_prefix, const EncodeOptions& options,
                    std::vector<int32_t>& ids) const;

  std::string json_;
  std::string config_;
  // Filled while vocab_ is read, so they stand before it.
  std::vector<std::string> bytes_;  // of each id
  std::vector<bool> special_;
  std::unordered_map<std::string, int32_t> vocab_;  // tokens as the file writes them
  BpeModel model_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  AddedTokenMatcher raw_tokens_;
  AddedTokenMatcher normalized_tokens_;
  std::unordered_map<std::string, int32_t> added_;
  std::vector<int32_t> before_;  // what the template puts before a text
  std::vector<int32_t> after_;
  bool strips_ = false;  // an added token takes white space along
  std::optional<int32_t> bos_;
  std::optional<int32_t> eos_;
};

}  // namespace mdn
