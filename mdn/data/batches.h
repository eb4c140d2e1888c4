// Fixed-length rows of tokens for training, in an order that a seed decides and a few numbers
// resume; and rows over a held-out split for evaluation.
//
// Three orders of training rows. `packed`: every epoch joins the documents in a new shuffled order,
// turns that ring of tokens to a new starting point, cuts it into rows and visits the rows in
// another shuffled order. A document that does not end with its row continues in another one, so
// each token is an input exactly once an epoch. `windows`: each row starts at a token drawn
// uniformly, independently of all others, from the split read as one text. `documents`: each row is
// one document, padded; every epoch visits them in another shuffled order. Data with targets of its
// own is read so, since a document cut in two would ask for what was not given.
//
// Any row is computed from (seed, epoch, row) alone: by keyed permutations, not by shuffled arrays.
// So a position is two numbers, resuming is immediate, and the same rows come whatever the rows a
// batch, the gradient accumulation or the number of threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mdn/data/dataset.h"
#include "mdn/data/permutation.h"
#include "mdn/io/json.h"

namespace mdn::data {

/// B rows of T tokens.
struct Batch {
  int64_t rows = 0;              // B
  int64_t length = 0;            // T
  std::vector<int64_t> inputs;   // [B, T]
  std::vector<int64_t> targets;  // [B, T]: the token after each input, or kIgnoredTarget
  /// Empty: each row is one sequence. Otherwise [N + 1], 0 = first < ... < last = B * T, the
  /// boundaries of N sequences in the rows joined to [1, B * T]: row starts, document starts and
  /// padding. The last input of a document has kIgnoredTarget, so nothing of one document reaches
  /// another's prediction.
  std::vector<int64_t> cu_seqlens;

  /// Targets that are not kIgnoredTarget: what a mean of the loss divides by.
  int64_t predicted() const;
};

enum class RowOrder { kPacked, kWindows, kDocuments };
const char* name_of(RowOrder order);                    // "packed", "windows", "documents"
RowOrder row_order_from_name(const std::string& name);  // throws listing the three

struct BatchOptions {
  RowOrder order = RowOrder::kPacked;
  int64_t rows = 8;      // B, >= 1
  int64_t length = 256;  // T, >= 1
  /// Packed rows: whether documents are kept apart by cu_seqlens and ignored targets. false joins
  /// them: state, attention and predictions pass from one to the next. Windows are always joined,
  /// documents never.
  bool separate_documents = true;
  int64_t seed = 0;  // >= 0
};

/// Where a training stream stands: the next row. Everything else is what it must be resumed with.
struct Position {
  int64_t epoch = 0;  // always 0 for windows
  int64_t row = 0;    // in [0, rows of an epoch)
  int64_t seed = 0;
  int64_t length = 0;
  std::string order;
  bool separate_documents = true;
  std::string data;  // TokenSplit::digest()

  Json to_json() const;
  /// Throws on missing, wrong and unknown keys.
  static Position from_json(const JsonObject& json);
  bool operator==(const Position&) const = default;
};

/// Training batches without end. Not for use by two threads at once. `split` must outlive it.
class Batches {
 public:
  /// Throws when the split has no tokens, when windows do not fit (T + 1 tokens are needed), when a
  /// document is longer than its row, when data with targets of its own is not read by documents,
  /// or on options out of range. Packed rows longer than the split are padded: inputs 0 in a
  /// sequence of their own (joined documents: at the row's end), targets ignored.
  Batches(const TokenSplit& split, const BatchOptions& options);

  Batch next();
  /// Of the row that next() will start with.
  Position position() const;
  /// Throws, naming what differs, when the position is of other data, order, length or seed.
  /// The rows a batch may differ.
  void seek(const Position& position);

  /// Packed: ceil(tokens / T); documents: their number. Windows have no epochs; ceil(tokens / T)
  /// stands for one.
  int64_t rows_per_epoch() const { return rows_per_epoch_; }
  const BatchOptions& options() const { return options_; }

 private:
  void open_epoch();
  void append_packed_row(Batch& batch);
  void append_window(Batch& batch);

  const TokenSplit& split_;
  BatchOptions options_;
  int64_t rows_per_epoch_ = 0;
  int64_t epoch_ = 0;
  int64_t row_ = 0;
  // Of the current epoch: what the seed and its number decide.
  int64_t opened_epoch_ = -1;
  Permutation documents_;
  Permutation rows_;
  int64_t rotation_ = 0;               // the ring's token that row 0 starts at
  std::vector<int64_t> group_starts_;  // ring position of every kGroup-th shuffled document
};

/// The held-out split from its first token to its last, in rows of T: every token is predicted
/// once, except those no earlier token of their sequence leads to (the first of the split and, with
/// separate documents, of each document). The last row is padded, the last batch may have fewer
/// rows. With more tokens than `max_tokens`, rows are taken at even distances over the whole split.
/// The same batches on every pass. `split` must outlive it.
class EvaluationBatches {
 public:
  struct Options {
    int64_t rows = 8;
    int64_t length = 256;
    bool separate_documents = true;
    int64_t max_tokens = 0;  // 0: all; otherwise rounded up to whole rows
    bool documents = false;  // each row is one document, padded
  };
  /// Throws when the split has no tokens, or on options out of range.
  EvaluationBatches(const TokenSplit& split, const Options& options);

  /// Fills `batch` and returns true, or returns false after the last one.
  bool next(Batch& batch);
  void rewind() { row_ = 0; }
  int64_t total_rows() const { return total_rows_; }

 private:
  const TokenSplit& split_;
  Options options_;
  int64_t rows_in_split_ = 0;
  int64_t total_rows_ = 0;
  int64_t row_ = 0;
};

}  // namespace mdn::data
