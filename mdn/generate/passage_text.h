// The text of a passage as its tokens come: whole characters only, ended by stop strings.
#pragma once

#include <string>
#include <vector>

#include "mdn/generate/stop_strings.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::generate {

class PassageText {
 public:
  /// The tokenizer must outlive it. Special tokens give no text.
  PassageText(const Tokenizer& tokenizer, std::vector<std::string> stop_strings);

  /// Adds a token; what may be shown now: valid UTF-8, bytes that form no character replaced by
  /// U+FFFD. Characters that a stop string may begin with wait.
  std::string push(int32_t id);
  /// The passage ended: what waited. Nothing after a stop string.
  std::string finish();

  bool stopped() const { return stops_.stopped(); }
  const std::string& matched() const { return stops_.matched(); }
  const std::string& text() const { return text_; }  // shown so far

 private:
  std::string show(std::string piece);

  StreamDecoder decoder_;
  StopStrings stops_;
  std::string text_;
};

}  // namespace mdn::generate
