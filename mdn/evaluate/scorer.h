// Runs the model over sequences: the log-probability of every target.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "mdn/evaluate/sequence.h"
#include "mdn/model/decoder.h"

namespace mdn::evaluate {

class Scorer {
 public:
  /// Batches hold sequences of similar length and at most `batch_tokens` tokens, padding included.
  /// A longer sequence is read in pieces of that many tokens that hand on the model's state, so
  /// memory does not grow with it. `decoder` must outlive the scorer.
  Scorer(const model::Decoder& decoder, c10::Device device, int64_t batch_tokens);

  /// The scores in the order of the sequences. `progress` gets the tokens done so far of this call
  /// and all of them. Throws when a token is outside the vocabulary, and when a log-probability is
  /// not finite.
  std::vector<Score> score(std::span<const Sequence> sequences,
                           const std::function<void(int64_t, int64_t)>& progress = {});

  int64_t tokens() const { return tokens_; }  // read so far, without padding
  const model::Decoder& decoder() const { return decoder_; }

 private:
  void run_batch(std::span<const Sequence> sequences, std::span<const size_t> rows,
                 std::vector<Score>& scores);
  void run_long(const Sequence& sequence, int64_t length, Score& score);
  void read_targets(const at::Tensor& hidden, const std::vector<int64_t>& positions,
                    const std::vector<int64_t>& targets, const std::vector<Score*>& scores);

  const model::Decoder& decoder_;
  c10::Device device_;
  int64_t batch_tokens_;
  int64_t tokens_ = 0;
};

}  // namespace mdn::evaluate
