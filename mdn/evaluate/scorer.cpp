#include "mdn/evaluate/scorer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "mdn/core/error.h"

namespace mdn::evaluate {
namespace {

// Logits in memory at a time; with float32 copies some hundred MB.
constexpr int64_t kMostLogits = int64_t{1} << 24;

/// Inputs up to the last one that has a target: what follows changes no score.
int64_t needed_length(const Sequence& sequence) {
  auto length = static_cast<int64_t>(sequence.targets.size());
  while (length > 0 && sequence.targets[static_cast<size_t>(length - 1)] == kIgnoredTarget) {
    --length;
  }
  return length;
}

at::Tensor as_tensor(const std::vector<int64_t>& values, at::IntArrayRef sizes,
                     c10::Device device) {
  // from_blob takes no const pointer; the clone leaves the vector alone
  return at::from_blob(const_cast<int64_t*>(values.data()), sizes, at::kLong).clone().to(device);
}

void check_tokens(const Sequence& sequence, int64_t vocabulary) {
  MDN_CHECK(sequence.inputs.size() == sequence.targets.size(), "{} inputs with {} targets",
            sequence.inputs.size(), sequence.targets.size());
  const auto check = [&](int64_t token) {
    MDN_CHECK(token >= 0 && token < vocabulary, "token {} is outside the model's vocabulary of {}",
              token, vocabulary);
  };
  std::for_each(sequence.inputs.begin(), sequence.inputs.end(), check);
  for (const int64_t target : sequence.targets) {
    if (target != kIgnoredTarget) {
      check(target);
    }
  }
}

}  // namespace

Scorer::Scorer(const model::Decoder& decoder, c10::Device device, int64_t batch_tokens)
    : decoder_(decoder), device_(device), batch_tokens_(batch_tokens) {
  MDN_CHECK(batch_tokens >= 1, "batches of {} tokens; at least 1 is needed", batch_tokens);
}

std::vector<Score> Scorer::score(std::span<const Sequence> sequences,
                                 const std::function<void(int64_t, int64_t)>& progress) {
  const at::NoGradGuard no_grad;
  std::vector<Score> scores(sequences.size());
  std::vector<int64_t> lengths(sequences.size());
  std::vector<size_t> order;
  int64_t total = 0, done = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    check_tokens(sequences[i], decoder_.config().vocab_size);
    lengths[i] = needed_length(sequences[i]);
    total += lengths[i];
    if (lengths[i] > 0) {
      order.push_back(i);
    }
  }
  // The longest first: memory runs out at once or not at all.
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
  for (size_t at = 0; at < order.size();) {
    const int64_t longest = lengths[order[at]];
    size_t rows = 1;
    if (longest > batch_tokens_) {
      run_long(sequences[order[at]], longest, scores[order[at]]);
    } else {
      rows = std::min(order.size() - at, static_cast<size_t>(batch_tokens_ / longest));
      run_batch(sequences, std::span(order).subspan(at, rows), scores);
    }
    for (size_t r = 0; r < rows; ++r) {
      done += lengths[order[at + r]];
    }
    at += rows;
    if (progress) {
      progress(done, total);
    }
  }
  tokens_ += done;
  return scores;
}

void Scorer::run_batch(std::span<const Sequence> sequences, std::span<const size_t> rows,
                       std::vector<Score>& scores) {
  const int64_t T = needed_length(sequences[rows.front()]);
  const auto B = static_cast<int64_t>(rows.size());
  std::vector<int64_t> inputs(static_cast<size_t>(B * T), 0);
  std::vector<int64_t> positions, targets;
  std::vector<Score*> into;
  for (int64_t b = 0; b < B; ++b) {
    const size_t row = rows[static_cast<size_t>(b)];
    const Sequence& sequence = sequences[row];
    const int64_t length = needed_length(sequence);
    std::copy_n(sequence.inputs.begin(), length, inputs.begin() + b * T);
    for (int64_t t = 0; t < length; ++t) {
      const int64_t target = sequence.targets[static_cast<size_t>(t)];
      if (target != kIgnoredTarget) {
        positions.push_back(b * T + t);
        targets.push_back(target);
        into.push_back(&scores[row]);
      }
    }
  }
  // Padding stands behind a sequence's last token, where nothing before it can see it.
  read_targets(decoder_.hidden(as_tensor(inputs, {B, T}, device_)), positions, targets, into);
}

void Scorer::run_long(const Sequence& sequence, int64_t length, Score& score) {
  model::DecoderState state = decoder_.new_state();
  for (int64_t begin = 0; begin < length; begin += batch_tokens_) {
    const int64_t end = std::min(length, begin + batch_tokens_);
    const std::vector<int64_t> inputs(sequence.inputs.begin() + begin,
                                      sequence.inputs.begin() + end);
    std::vector<int64_t> positions, targets;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t target = sequence.targets[static_cast<size_t>(t)];
      if (target != kIgnoredTarget) {
        positions.push_back(t - begin);
        targets.push_back(target);
      }
    }
    const at::Tensor hidden =
        decoder_.hidden(as_tensor(inputs, {1, end - begin}, device_), {}, &state);
    read_targets(hidden, positions, targets, std::vector<Score*>(targets.size(), &score));
  }
}

// hidden: [B, T, D]; positions: of each target in [0, B T).
void Scorer::read_targets(const at::Tensor& hidden, const std::vector<int64_t>& positions,
                          const std::vector<int64_t>& targets, const std::vector<Score*>& scores) {
  const at::Tensor rows = hidden.reshape({-1, hidden.size(-1)});
  const auto count = static_cast<int64_t>(positions.size());
  const int64_t at_once = std::max<int64_t>(1, kMostLogits / decoder_.config().vocab_size);
  for (int64_t begin = 0; begin < count; begin += at_once) {
    const int64_t n = std::min(at_once, count - begin);
    const auto part = [&](const std::vector<int64_t>& values) {
      return as_tensor({values.begin() + begin, values.begin() + begin + n}, {n}, device_);
    };
    at::Tensor logits = decoder_.logits(rows.index_select(0, part(positions)));
    if (logits.scalar_type() != at::kDouble) {
      logits = logits.to(at::kFloat);
    }
    const at::Tensor wanted = part(targets);
    // log p = logit - log sum exp logits
    const at::Tensor log_probs =
        (logits.gather(1, wanted.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
            .to(at::kCPU, at::kDouble)
            .contiguous();
    const at::Tensor matched = logits.argmax(1).eq(wanted).to(at::kCPU, at::kByte).contiguous();
    for (int64_t i = 0; i < n; ++i) {
      const double log_prob = log_probs.const_data_ptr<double>()[i];
      MDN_CHECK(std::isfinite(log_prob),
                "the model gave a log-probability of {}: its weights or its activations in this "
                "dtype are not finite",
                log_prob);
      Score& score = *scores[static_cast<size_t>(begin + i)];
      score.log_probs.push_back(log_prob);
      score.matched.push_back(matched.const_data_ptr<uint8_t>()[i]);
    }
  }
}

}  // namespace mdn::evaluate
