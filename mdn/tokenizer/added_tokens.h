// Tokens that a text may spell out and that are found before it is cut into words: special tokens
// such as <|endoftext|>, and words added after training.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mdn {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and after it
  bool normalized = false;   // found in the normalised text rather than in the given one
  bool special = false;
};

/// Finds a set of added tokens: at each place the longest, from left to right.
class AddedTokenMatcher {
 public:
  /// Registers a token under the text to look for.
  void add(std::string_view text, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  /// A part of the text: a token, or the text between tokens.
  struct Piece {
    std::string_view text;
    std::optional<int32_t> id;
  };
  /// Cuts well-formed UTF-8 into pieces; no piece without id is empty. With `ignore_special`,
  /// special tokens are text.
  std::vector<Piece> split(std::string_view text, bool ignore_special) const;

 private:
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> children;  // sorted by byte
    int32_t token = -1;                                  // index into tokens_
  };
  const Node* child(const Node& node, uint8_t byte) const;
  /// The longest token at the start of `text`, and its length; or -1.
  std::pair<int32_t, size_t> longest(std::string_view text) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_{1};
};

}  // namespace mdn
