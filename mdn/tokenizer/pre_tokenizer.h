// Normalisation and the cutting of text into words, as the "normalizer" and "pre_tokenizer" of a
// tokenizer.json describe them.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "mdn/io/json.h"
#include "mdn/tokenizer/regex.h"

namespace mdn {

/// NFC, NFD, NFKC, NFKD and sequences of them.
class Normalizer {
 public:
  /// `json` may be null: no normalisation. Other types are errors that name them.
  Normalizer(const Json& json, const std::string& place);
  bool empty() const { return forms_.empty(); }
  /// `text` must be well-formed UTF-8.
  std::string apply(std::string_view text) const;

 private:
  void add(const Json& json, const std::string& place);
  std::vector<int> forms_;  // utf8proc's options, applied in turn
};

/// What becomes of the matches of a pattern when a text is cut at them.
enum class SplitBehavior { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// Cuts `text` at the matches of `regex`, or, inverted, at what is between them. Appends the
/// non-empty pieces.
void split_at_matches(const Regex& regex, SplitBehavior behavior, bool invert,
                      std::string_view text, std::vector<std::string_view>& pieces);

/// Split, Digits and, last, ByteLevel, alone or in sequences.
class PreTokenizer {
 public:
  /// Types other than these, or a chain that does not end in its only ByteLevel, are errors that
  /// name them.
  PreTokenizer(const Json& json, const std::string& place);

  /// Calls `word` with each word of well-formed UTF-8 text; a word is valid during the call.
  /// Without `may_prefix`, no space is put before the first word even if the file asks for one.
  void words(std::string_view text, bool may_prefix,
             const std::function<void(std::string_view)>& word) const;

  /// Whether no character can be lost or added.
  bool keeps_text() const;
  bool cuts() const { return !steps_.empty(); }

 private:
  struct Step {
    Regex regex;
    SplitBehavior behavior;
    bool invert;
  };
  void add(const Json& json, const std::string& place, bool last);

  std::vector<Step> steps_;  // before ByteLevel
  bool has_byte_level_ = false;
  bool add_prefix_space_ = false;
  std::vector<Step> byte_level_;  // its own pattern: none or one
};

}  // namespace mdn
