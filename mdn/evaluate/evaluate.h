// Runs tasks with a model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "mdn/evaluate/metrics.h"
#include "mdn/evaluate/scorer.h"
#include "mdn/evaluate/tasks.h"
#include "mdn/io/json.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::evaluate {

inline constexpr int64_t kDefaultWindow = 2048;

struct Options {
  int64_t limit = 0;  // documents, questions or examples a task; 0: all
  int64_t seed = 0;   // of the generators
  /// Called now and then with the share of the task that is done, in [0, 1].
  std::function<void(double)> progress;
  /// Called with a JSON object for each document, question or example.
  std::function<void(const OrderedJson&)> sample;
};

struct Result {
  TaskSpec task;
  OrderedJson settings;  // in force, with files and their SHA-256
  std::vector<Metric> metrics;
  int64_t samples = 0;
  int64_t tokens = 0;  // the model read
  double seconds = 0;
  std::vector<std::string> notes;  // what a reader of the metrics should know

  OrderedJson to_json() const;
};

/// `tokenizer` may be null for tasks over token ids. Errors of data name file and line.
Result run_task(const TaskSpec& task, Scorer& scorer, const Tokenizer* tokenizer,
                const Options& options);

/// The metrics of results as lines of a table.
std::string table(const std::vector<Result>& results);

/// The token that stands before a text: the tokenizer's bos, else its eos, else none.
std::optional<int32_t> prefix_token(const Tokenizer& tokenizer);

/// Perplexity's part of run_task (perplexity.cpp).
void run_perplexity(Scorer& scorer, const Tokenizer& tokenizer, const Options& options,
                    Result& result);

}  // namespace mdn::evaluate
