// Tasks over token ids whose examples are computed: recall, copying, state tracking. They need a
// vocabulary and no tokenizer.
//
//   mqar    multi-query associative recall as Zoology makes it: pairs key value, then keys at gaps
//           drawn by a power law; after each of these its value is asked for
//   copy    symbols, a separator, the symbols again; the second run is asked for
//   parity  bits; after each the parity of those so far
//   s3, s5  permutations of 3 or 5 things; after each the product of those so far
//
// Targets are given beside the inputs and are no inputs of the next step, but for `copy`: in mqar
// random tokens follow the queries, in parity, s3 and s5 the next element does. A model is trained
// on them with these targets (docs/data.md, "Targets of their own").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mdn/evaluate/random.h"
#include "mdn/evaluate/sequence.h"
#include "mdn/evaluate/task_spec.h"
#include "mdn/io/json.h"

namespace mdn::evaluate {

/// Which examples of a seed: those to train on, to hold out and to evaluate with never coincide by
/// their numbers.
enum class Purpose : uint64_t { kTrain = 1, kHeldOut = 2, kEvaluate = 3 };

class SyntheticTask {
 public:
  /// Reads the settings of a task named in names(). `vocab` is used where the settings name none.
  /// Throws on settings out of range.
  SyntheticTask(const TaskSpec& spec, int64_t vocab);

  static bool is_one(const std::string& name);

  /// Example `index` >= 0; always the same for equal settings.
  Sequence example(int64_t seed, Purpose purpose, int64_t index) const;

  int64_t vocab() const { return vocab_; }    // ids are below it
  int64_t length() const { return length_; }  // inputs of an example
  OrderedJson settings() const;

 private:
  Sequence mqar(Random& random) const;
  Sequence copy(Random& random) const;
  Sequence state_tracking(Random& random) const;

  std::string name_;
  int64_t vocab_ = 0;
  int64_t length_ = 0;
  int64_t pairs_ = 0;                           // mqar
  double power_ = 0;                            // mqar
  bool random_fill_ = true;                     // mqar
  int64_t symbols_ = 0;                         // copy
  int64_t things_ = 0;                          // s3, s5; 0: parity
  std::vector<std::vector<int64_t>> elements_;  // permutations in lexicographic order
};

/// Permutations of 0..things-1 in lexicographic order; an element's id is its place.
std::vector<std::vector<int64_t>> permutations(int64_t things);

/// The id of a b, which applies b first: (a b)(x) = a(b(x)).
int64_t compose(const std::vector<std::vector<int64_t>>& elements, int64_t a, int64_t b);

}  // namespace mdn::evaluate
