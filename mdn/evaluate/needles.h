// Needles in a haystack: RULER's eight retrieval tasks. Sentences with magic values for keys stand
// in a long text, and the values of some keys are asked for at its end.
//
//   niah_single_1    noise sentence   1 key, a number
//   niah_single_2    essay            1 key, a number
//   niah_single_3    essay            1 key, a uuid
//   niah_multikey_1  essay            4 keys, one asked for, a number
//   niah_multikey_2  other needles    numbers
//   niah_multikey_3  other needles    uuids for uuids
//   niah_multivalue  essay            1 key, 4 numbers, all asked for
//   niah_multiquery  essay            4 keys, all asked for, numbers
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mdn/evaluate/sequence.h"
#include "mdn/evaluate/synthetic.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::evaluate {

/// An example before it is tokenised.
struct NeedleText {
  std::string prompt;               // haystack, question and the beginning of the answer
  std::vector<std::string> values;  // in the order in which they are asked for
  std::string with_values() const;  // the prompt and " value, value, ..."
};

/// Targets and, for each value, its place among them.
struct NeedleExample {
  Sequence sequence;
  std::vector<std::pair<size_t, size_t>> values;  // [first, last) among the targets
};

class NeedleTask {
 public:
  /// Settings: length (tokens with the answer). `essay` is the text of the haystacks of essays; the
  /// tokenizer must outlive this. Throws when a haystack needs an essay and it is empty, and when
  /// not even the shortest example fits.
  NeedleTask(const TaskSpec& spec, const Tokenizer& tokenizer, const std::string& essay);

  static bool is_one(const std::string& name);
  static bool needs_essay(const std::string& name);
  static std::vector<std::string> names();

  /// Example `index`, of at most length() inputs and targets together; equal for equal settings.
  /// Only the values' tokens are targets, each value predicted after the true ones before it.
  NeedleExample example(int64_t seed, Purpose purpose, int64_t index) const;

  /// The text with `units` units of haystack: sentences or, of an essay, words.
  NeedleText text(Random random, int64_t units) const;

  int64_t length() const { return length_; }
  OrderedJson settings() const;

 private:
  enum class Haystack { kNoise, kEssay, kNeedles };
  struct Kind {
    const char* name;
    Haystack haystack;
    bool uuid_keys, uuid_values;
    int64_t keys, values, asked;
  };
  static const std::vector<Kind>& kinds();
  static const Kind* find(const std::string& name);

  std::string needle(const std::string& key, const std::string& value) const;
  std::string key(Random& random) const;
  std::string value(Random& random) const;
  std::string essay_with(const std::vector<std::string>& needles, Random& random,
                         int64_t units) const;
  int64_t needles() const { return kind_.keys * kind_.values; }

  Kind kind_;
  const Tokenizer& tokenizer_;
  int64_t length_;
  std::vector<std::string> essay_;  // its words
  int64_t units_ = 0;               // that fit for example 0 of seed 0
};

/// Sentences: each ends with . ! or ? (and quotes or brackets behind it) before white space.
std::vector<std::string> split_sentences(const std::string& text);

}  // namespace mdn::evaluate
