// From texts to sequences with targets: a continuation after its context, and a text of any length
// in windows. As in lm-evaluation-harness 0.4.x.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mdn/evaluate/sequence.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::evaluate {

struct EncodedPair {
  std::vector<int32_t> context;       // at least one token
  std::vector<int32_t> continuation;  // may be empty where the tokenizer joins the two
};

/// White space that ends the context goes to the continuation; then the two are encoded as one text
/// and divided after as many tokens as the context has alone. An empty context becomes `prefix`;
/// without one, or when the continuation starts with it, the continuation's first token.
EncodedPair encode_pair(const Tokenizer& tokenizer, std::string_view context,
                        std::string_view continuation, std::optional<int32_t> prefix);

/// The continuation's tokens as targets. Of context and continuation the last window + 1 tokens
/// count (0: all); `truncated` says whether that left some out. Throws, opening with `place`, when
/// the continuation is empty or longer than the window.
Sequence continuation_sequence(const EncodedPair& pair, int64_t window, const std::string& place,
                               bool* truncated = nullptr);

/// A text of N tokens after one prefix token, as windows in which every token is a target once and
/// at most `window` tokens are read. Each window but the first predicts `stride` tokens and so has
/// at least window - stride + 1 tokens of context. stride = window: disjoint windows; the first
/// token of each has the last of the window before as its only context.
/// tokens: [1 + N], the prefix first. 1 <= stride <= window; window 0: the whole text in one.
std::vector<Sequence> rolling_sequences(std::span<const int64_t> tokens, int64_t window,
                                        int64_t stride);

}  // namespace mdn::evaluate
