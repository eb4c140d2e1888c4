#include "mdn/tokenizer/added_tokens.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/tokenizer/regex.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

std::string_view last_character(std::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) {
    --begin;
  }
  return text.substr(begin);
}

/// Alphabetic, mark, decimal digit, connector or join control, as Unicode defines words.
bool is_word_character(std::string_view character) {
  static const Regex word(
      "[\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"
      "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}\\x{200C}\\x{200D}]",
      "word character");
  size_t begin = 0;
  size_t end = 0;
  return Regex::Matcher(word, character).next(begin, end);
}

size_t white_space_at_end(std::string_view text) {
  size_t length = 0;
  while (length < text.size()) {
    const std::string_view last = last_character(text.substr(0, text.size() - length));
    if (!is_white_space(utf8_decode(last))) {
      break;
    }
    length += last.size();
  }
  return length;
}

size_t white_space_at_start(std::string_view text) {
  size_t length = 0;
  while (length < text.size() && is_white_space(utf8_decode(text.substr(length)))) {
    length += utf8_length(text.substr(length));
  }
  return length;
}

}  // namespace

void AddedTokenMatcher::add(std::string_view text, const AddedToken& token) {
  uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    auto& children = nodes_[node].children;
    const auto place = std::lower_bound(children.begin(), children.end(), std::pair(byte, 0u));
    if (place != children.end() && place->first == byte) {
      node = place->second;
    } else {
      const auto created = static_cast<uint32_t>(nodes_.size());
      children.insert(place, {byte, created});
      nodes_.emplace_back();
      node = created;
    }
  }
  MDN_CHECK(nodes_[node].token < 0, "added tokens {} and {} are the same text after normalisation",
            token.id,
            nodes_[node].token < 0 ? -1 : tokens_[static_cast<size_t>(nodes_[node].token)].id);
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

const AddedTokenMatcher::Node* AddedTokenMatcher::child(const Node& node, uint8_t byte) const {
  const auto place =
      std::lower_bound(node.children.begin(), node.children.end(), std::pair(byte, 0u));
  return place != node.children.end() && place->first == byte ? &nodes_[place->second] : nullptr;
}

std::pair<int32_t, size_t> AddedTokenMatcher::longest(std::string_view text) const {
  std::pair<int32_t, size_t> best = {-1, 0};
  const Node* node = &nodes_.front();
  for (size_t i = 0; i < text.size(); ++i) {
    node = child(*node, static_cast<uint8_t>(text[i]));
    if (node == nullptr) {
      break;
    }
    if (node->token >= 0) {
      best = {node->token, i + 1};
    }
  }
  return best;
}

std::vector<AddedTokenMatcher::Piece> AddedTokenMatcher::split(std::string_view text,
                                                               bool ignore_special) const {
  std::vector<Piece> pieces;
  size_t done = 0;
  size_t at = tokens_.empty() ? text.size() : 0;
  while (at < text.size()) {
    const auto [index, length] = longest(text.substr(at));
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at;
    size_t end = at + length;
    at = end;  // what is passed over below is not searched for shorter tokens
    if (ignore_special && token.special) {
      continue;
    }
    if (token.single_word &&
        ((begin > 0 && is_word_character(last_character(text.substr(0, begin)))) ||
         (end < text.size() &&
          is_word_character(text.substr(end, utf8_length(text.substr(end))))))) {
      continue;
    }
    if (token.lstrip) {
      begin = std::max(begin - white_space_at_end(text.substr(0, begin)), done);
    }
    if (token.rstrip) {
      end += white_space_at_start(text.substr(end));
    }
    if (begin > done) {
      pieces.push_back({text.substr(done, begin - done), std::nullopt});
    }
    pieces.push_back({text.substr(begin, end - begin), token.id});
    done = end;
  }
  if (done < text.size()) {
    pieces.push_back({text.substr(done), std::nullopt});
  }
  return pieces;
}

}  // namespace mdn
