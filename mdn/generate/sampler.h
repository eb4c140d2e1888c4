// From logits to the next token. No torch: a span of floats in, a token id out.
//
// The steps apply in this order, each to what the step before left (conventions as in Hugging Face
// transformers):
//
//   1. repetition penalty r: the logit x of every token seen so far (prompt and passage) becomes
//      x / r where x > 0, x r otherwise;
//   2. temperature t: logits are divided by t. t = 0 is greedy: the largest logit is taken, the
//      lowest id among equals, and the steps below do nothing;
//   3. top-k: tokens whose logit is below the k-th largest go (equals of the k-th stay);
//   4. top-p: with probabilities renormalised over what is left and ranked downwards (equals: the
//      lowest id first), a token stays while the sum of those ranked before it is below p; the
//      first always stays;
//   5. min-p: tokens whose probability is below min_p times the largest go;
//   6. one token is drawn from what is left, renormalised.
//
// Arithmetic is float64.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mdn::generate {

struct SamplerOptions {
  double temperature = 1.0;         // >= 0; 0: greedy
  int64_t top_k = 0;                // >= 0; 0: off
  double top_p = 1.0;               // (0, 1]; 1: off
  double min_p = 0.0;               // [0, 1]; 0: off
  double repetition_penalty = 1.0;  // > 0; 1: off, above 1: repeat less

  bool operator==(const SamplerOptions&) const = default;
};

/// Throws mdn::Error that names the option, its value and what is allowed.
void check(const SamplerOptions& options);

/// Throws where nothing can be drawn from logits whose largest, a NaN counting as such, is this
/// one: as Sampler::distribution does, for those who draw in another way.
void check_largest_logit(float logit);

/// Which token ids occurred so far. Memory is bounded by the vocabulary, not by the length.
class SeenTokens {
 public:
  void add(int64_t id);
  bool has(int64_t id) const;
  const std::vector<int32_t>& ids() const { return ids_; }  // in order of first occurrence

 private:
  std::vector<int32_t> ids_;
  std::vector<bool> seen_;
};

/// Uniform numbers of one sequence. Counter-based: number n is a hash of (seed, stream, n), so a
/// sequence's numbers depend on nothing else, and its place in them is one integer to save.
struct RandomStream {
  uint64_t seed = 0;
  uint64_t stream = 0;
  uint64_t drawn = 0;  // numbers used so far

  /// In [0, 1), a multiple of 2^-53.
  double next();
};

/// A token that may be drawn, and how likely.
struct Candidate {
  int32_t id;
  double probability;
};

class Sampler {
 public:
  /// Checks the options.
  explicit Sampler(const SamplerOptions& options);

  /// What steps 1 to 5 leave, normalised, in order of the ids (greedy: one candidate). Valid until
  /// the next call. Logits of -infinity are never drawn; NaN, +infinity or no finite logit is an
  /// error.
  std::span<const Candidate> distribution(std::span<const float> logits, const SeenTokens& seen);

  /// Draws from distribution(): the first candidate whose cumulative probability exceeds
  /// random.next(). Greedy draws no number.
  int64_t next(std::span<const float> logits, const SeenTokens& seen, RandomStream& random);

  const SamplerOptions& options() const { return options_; }

 private:
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();

  SamplerOptions options_;
  std::vector<double> scaled_;  // logits after steps 1 and 2
  std::vector<Candidate> kept_;
};

}  // namespace mdn::generate
