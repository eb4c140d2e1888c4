#include "mdn/evaluate/windows.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/evaluate/text.h"

namespace mdn::evaluate {

EncodedPair encode_pair(const Tokenizer& tokenizer, std::string_view context,
                        std::string_view continuation, std::optional<int32_t> prefix) {
  EncodedPair pair;
  if (context.empty()) {
    pair.continuation = tokenizer.encode(continuation);
    if (prefix && (pair.continuation.empty() || pair.continuation.front() != *prefix)) {
      pair.context.push_back(*prefix);
    } else if (!pair.continuation.empty()) {
      pair.context.push_back(pair.continuation.front());
      pair.continuation.erase(pair.continuation.begin());
    }
    return pair;
  }
  const std::string_view kept = strip_right(context);
  const std::string moved = std::string(context.substr(kept.size())) + std::string(continuation);
  const auto whole = tokenizer.encode(std::string(kept) + moved);
  pair.context = tokenizer.encode(kept);
  const auto size = static_cast<int64_t>(std::min(pair.context.size(), whole.size()));
  pair.continuation.assign(whole.begin() + size, whole.end());
  // A context of white space alone has no tokens left: as for an empty one.
  if (pair.context.empty()) {
    return encode_pair(tokenizer, "", moved, prefix);
  }
  return pair;
}

Sequence continuation_sequence(const EncodedPair& pair, int64_t window, const std::string& place,
                               bool* truncated) {
  const auto asked = static_cast<int64_t>(pair.continuation.size());
  MDN_CHECK(asked > 0 && !pair.context.empty(),
            "{}: the continuation has no tokens of its own after its context", place);
  MDN_CHECK(window == 0 || asked <= window,
            "{}: the continuation has {} tokens, more than the window of {}", place, asked, window);
  std::vector<int64_t> tokens(pair.context.begin(), pair.context.end());
  tokens.insert(tokens.end(), pair.continuation.begin(), pair.continuation.end());
  const auto total = static_cast<int64_t>(tokens.size());
  const int64_t kept = window == 0 ? total : std::min(total, window + 1);
  if (truncated != nullptr) {
    *truncated = kept < total;
  }
  // inputs: all but the last; targets: the token after each, where that is the continuation's
  Sequence sequence;
  sequence.inputs.assign(tokens.end() - kept, tokens.end() - 1);
  sequence.targets.assign(static_cast<size_t>(kept - 1 - asked), kIgnoredTarget);
  sequence.targets.insert(sequence.targets.end(), tokens.end() - asked, tokens.end());
  return sequence;
}

std::vector<Sequence> rolling_sequences(std::span<const int64_t> tokens, int64_t window,
                                        int64_t stride) {
  MDN_CHECK(window == 0 || (stride >= 1 && stride <= window),
            "a stride of {} with a window of {}; it must be 1 to {}", stride, window, window);
  std::vector<Sequence> sequences;
  const auto N = static_cast<int64_t>(tokens.size()) - 1;
  const int64_t longest = window == 0 ? std::max<int64_t>(N, 1) : window;
  for (int64_t predicted = 0; predicted < N;) {
    const int64_t asked = std::min(N - predicted, predicted == 0 ? longest : stride);
    const int64_t end = predicted + asked;
    // Inputs are tokens [begin, end) and the last `asked` of them have a target each.
    const int64_t begin = predicted == 0 ? 0 : end - longest;
    Sequence sequence;
    sequence.inputs.assign(tokens.begin() + begin, tokens.begin() + end);
    sequence.targets.assign(static_cast<size_t>(end - begin - asked), kIgnoredTarget);
    sequence.targets.insert(sequence.targets.end(), tokens.begin() + predicted + 1,
                            tokens.begin() + end + 1);
    sequences.push_back(std::move(sequence));
    predicted = end;
  }
  return sequences;
}

}  // namespace mdn::evaluate
