// Ends a stream of text before the first of several strings, wherever its pieces are cut.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mdn::generate {

/// Text comes in pieces (one a token); what cannot belong to a stop string any more comes out at
/// once, the rest is held back until that is decided. The stop string that is complete first ends
/// the stream (of those that end at the same byte, the longest); it and what follows never come
/// out. The result does not depend on how the text is cut. Bytes are compared as they are; when
/// stop strings and pieces are whole UTF-8 characters, so is what comes out.
class StopStrings {
 public:
  StopStrings() = default;
  /// Throws when a string is empty.
  explicit StopStrings(std::vector<std::string> strings);

  /// Adds a piece and returns what may be shown now. After a stop: always empty.
  std::string push(std::string_view piece);
  /// The text ended: what was held back.
  std::string flush();

  bool stopped() const { return stopped_; }
  /// Which string stopped the stream; empty: none.
  const std::string& matched() const { return matched_; }

 private:
  size_t held_from() const;

  std::vector<std::string> strings_;
  std::string pending_;  // shorter than the longest string between calls
  std::string matched_;
  bool stopped_ = false;
};

}  // namespace mdn::generate
