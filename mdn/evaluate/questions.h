// Multiple choice and last words: the public data sets' own JSONL lines to requests, as the task
// definitions of lm-evaluation-harness 0.4.x word them, and answers to metrics.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "mdn/evaluate/metrics.h"
#include "mdn/io/json.h"

namespace mdn::evaluate {

struct Question {
  std::string place;  // FILE:LINE
  /// Context and continuation, one a choice; a last word is a single one.
  std::vector<std::pair<std::string, std::string>> requests;
  std::vector<std::string> choices;  // for their lengths; empty for a last word
  int64_t gold = 0;                  // the right one
};

/// What the model said to one request.
struct Answer {
  double log_likelihood = 0;
  bool greedy = false;  // whether greedy decoding gives the continuation
};

struct QuestionTask {
  const char* name;
  const char* fields;     // of a line, for people
  const char* label_key;  // the field that a file of labels stands for; null: none
  bool last_word;         // perplexity and acc, else acc
  bool normalised;        // acc_norm and acc_bytes as well
  Question (*read)(const JsonObject& line);
};

const std::vector<QuestionTask>& question_tasks();

/// The questions of a JSONL file (plain, gzip, zstd), at most `limit` (0: all). `labels`, for data
/// sets that keep them apart, has one a line. Throws, naming file and line, on malformed lines,
/// missing fields, empty texts and labels outside the choices.
struct QuestionFile {
  std::vector<Question> questions;
  std::string sha256;
};
QuestionFile read_questions(const QuestionTask& task, const std::filesystem::path& path,
                            const std::filesystem::path& labels, int64_t limit);

/// acc: the most likely choice is right. acc_norm: by log-likelihood per character, acc_bytes: per
/// byte of the choice (its UTF-8). Last words: acc, greedy decoding gives the word; perplexity.
/// answers: [questions][requests].
std::vector<Metric> question_metrics(const QuestionTask& task, std::span<const Question> questions,
                                     std::span<const std::vector<Answer>> answers);

}  // namespace mdn::evaluate
