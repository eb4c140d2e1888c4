// Text to token ids and back.
//
// Text is bytes. Every tokenizer here is over bytes in the end, so any byte string can be encoded,
// and without a normaliser or prefix space decode(encode(text)) == text exactly, well-formed UTF-8
// or not. All methods are const and may be called from many threads at once.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mdn {

struct EncodeOptions {
  /// Adds what the tokenizer's template puts around a text, such as a beginning-of-text token.
  bool add_special_tokens = false;
  /// Reads special tokens that are spelled out in the text ("<|endoftext|>") as plain text. For
  /// text from outside, which must not be able to end a document.
  bool ignore_special_tokens_in_text = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options = {}) const = 0;

  /// Largest id + 1: how many rows an embedding needs. Ids in between may be unused.
  virtual int32_t vocab_size() const = 0;

  /// What the id adds to a text, empty for an id in [0, vocab_size()) that no token has. A token
  /// may be a part of a UTF-8 character. Throws for other ids.
  virtual std::string_view token_bytes(int32_t id) const = 0;

  /// Whether the id is a special token: control of the model rather than text.
  virtual bool is_special(int32_t id) const = 0;

  /// The id whose text is exactly `token`, special tokens included.
  virtual std::optional<int32_t> token_id(std::string_view token) const = 0;

  virtual std::optional<int32_t> bos_id() const { return std::nullopt; }
  virtual std::optional<int32_t> eos_id() const { return std::nullopt; }

  /// SHA-256 of tokenizer.json: equal hashes give equal ids.
  virtual std::string hash() const = 0;

  /// Writes tokenizer.json (and tokenizer_config.json, where the tokenizer had one) into a folder
  /// that exists, for load_tokenizer and for Hugging Face's readers.
  virtual void save(const std::filesystem::path& folder) const = 0;

  /// The tokens' bytes joined; any bytes, see utf8_replace_invalid to show them.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = false) const;
};

/// One id a byte: vocab_size() is 256, there are no special tokens, and every byte string is its
/// own encoding. Its tokenizer.json is a byte-level BPE without merges whose ids are the bytes, so
/// that other tools read a checkpoint's tokenizer as they read any.
class ByteTokenizer : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text,
                              const EncodeOptions& options = {}) const override;
  int32_t vocab_size() const override { return 256; }
  std::string_view token_bytes(int32_t id) const override;
  bool is_special(int32_t) const override { return false; }
  std::optional<int32_t> token_id(std::string_view token) const override;
  std::string hash() const override;
  void save(const std::filesystem::path& folder) const override;

  /// The content of its tokenizer.json.
  static const std::string& json();
};

/// Turns ids that come one at a time into text that can be shown at once: only whole UTF-8
/// characters are given out. Bytes that can no longer become a character are given out as they are,
/// so all outputs joined equal decode() of all ids.
class StreamDecoder {
 public:
  /// The tokenizer must outlive it.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = false)
      : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

  /// What can be shown now; often empty within a character.
  std::string push(int32_t id);

  /// The bytes still held, the beginning of a character; starts anew.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  // at most 3 bytes between calls
};

inline constexpr const char* kTokenizerFile = "tokenizer.json";
inline constexpr const char* kTokenizerConfigFile = "tokenizer_config.json";

/// Reads a Hugging Face tokenizer.json, or a folder that holds one. tokenizer_config.json beside it
/// gives bos_token and eos_token, where it has them. Errors name the file, the component, and what
/// is supported.
std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& path_or_folder);

}  // namespace mdn
