#include "mdn/evaluate/evaluate.h"

#include <algorithm>
#include <chrono>

#include "mdn/core/error.h"
#include "mdn/evaluate/needles.h"
#include "mdn/evaluate/questions.h"
#include "mdn/evaluate/synthetic.h"
#include "mdn/evaluate/windows.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"

namespace mdn::evaluate {
namespace {

constexpr int64_t kSyntheticExamples = 1000;
constexpr int64_t kNeedleExamples = 500;  // RULER's
// Tokens of examples made before they are scored.
constexpr int64_t kGroupTokens = int64_t{1} << 20;

const QuestionTask& question_task(const std::string& name) {
  for (const QuestionTask& task : question_tasks()) {
    if (name == task.name) {
      return task;
    }
  }
  MDN_THROW("{}: no task of questions", name);
}

std::function<void(int64_t, int64_t)> progress_of(const Options& options, double from, double to) {
  return [&options, from, to](int64_t done, int64_t all) {
    if (options.progress) {
      options.progress(from + (to - from) * static_cast<double>(done) / static_cast<double>(all));
    }
  };
}

void run_questions(Scorer& scorer, const Tokenizer& tokenizer, const Options& options,
                   Result& result) {
  const TaskSpec& spec = result.task;
  const QuestionTask& task = question_task(spec.name());
  const int64_t window = spec.integer_or("window", kDefaultWindow, 0);
  const std::string labels = spec.string_or("labels", "");
  const QuestionFile file = read_questions(task, spec.string("file"), labels, options.limit);
  result.settings["file"] = spec.string("file");
  result.settings["sha256"] = file.sha256;
  if (!labels.empty()) {
    result.settings["labels"] = labels;
    result.settings["labels_sha256"] = sha256_hex(read_file(labels));
  }
  result.settings["window"] = window;

  std::vector<Sequence> sequences;
  int64_t truncated = 0;
  for (const Question& question : file.questions) {
    for (const auto& [context, continuation] : question.requests) {
      const EncodedPair pair =
          encode_pair(tokenizer, context, continuation, prefix_token(tokenizer));
      bool cut = false;
      sequences.push_back(continuation_sequence(pair, window, question.place, &cut));
      truncated += cut ? 1 : 0;
    }
  }
  if (truncated > 0) {
    result.notes.push_back(
        fmt::format("{} of {} contexts were longer than the window of {} and lost their beginning",
                    truncated, sequences.size(), window));
  }
  const auto scores = scorer.score(sequences, progress_of(options, 0, 1));
  std::vector<std::vector<Answer>> answers;
  size_t at = 0;
  for (const Question& question : file.questions) {
    auto& answer = answers.emplace_back();
    OrderedJson log_likelihoods = OrderedJson::array(), greedy = OrderedJson::array();
    for (size_t k = 0; k < question.requests.size(); ++k, ++at) {
      answer.push_back({scores[at].log_likelihood(), scores[at].all_matched()});
      log_likelihoods.push_back(answer.back().log_likelihood);
      greedy.push_back(answer.back().greedy);
    }
    if (options.sample) {
      options.sample({{"place", question.place},
                      {"requests", question.requests},
                      {"choices", question.choices},
                      {"gold", question.gold},
                      {"log_likelihoods", log_likelihoods},
                      {"greedy", greedy}});
    }
  }
  result.samples = static_cast<int64_t>(file.questions.size());
  result.metrics = question_metrics(task, file.questions, answers);
}

/// Share of right parts an example, and whether all are.
struct Marks {
  std::vector<double> part, whole;
  void add(double share) {
    part.push_back(share);
    whole.push_back(share == 1.0 ? 1.0 : 0.0);
  }
};

/// Makes examples and scores them, some at a time. Example: {sequence(), share(score)}.
template <class Make>
void run_generated(int64_t examples, Scorer& scorer, const Options& options, Result& result,
                   Make make) {
  Marks marks;
  std::vector<decltype(make(int64_t{0}))> group;
  for (int64_t index = 0; index < examples;) {
    group.clear();
    std::vector<Sequence> sequences;
    const int64_t from = index;
    for (int64_t tokens = 0; index < examples && tokens < kGroupTokens; ++index) {
      group.push_back(make(index));
      sequences.push_back(group.back().sequence);
      tokens += static_cast<int64_t>(sequences.back().inputs.size());
    }
    const auto share = [&](int64_t i) {
      return static_cast<double>(i) / static_cast<double>(examples);
    };
    const auto scores = scorer.score(sequences, progress_of(options, share(from), share(index)));
    for (size_t i = 0; i < scores.size(); ++i) {
      int64_t right = 0;
      for (const auto& [first, last] : group[i].values) {
        right += std::accumulate(scores[i].matched.begin() + static_cast<int64_t>(first),
                                 scores[i].matched.begin() + static_cast<int64_t>(last),
                                 size_t{0}) == last - first
                     ? 1
                     : 0;
      }
      marks.add(static_cast<double>(right) / static_cast<double>(group[i].values.size()));
      if (options.sample) {
        options.sample({{"example", from + static_cast<int64_t>(i)},
                        {"asked", group[i].values.size()},
                        {"right", right},
                        {"log_likelihood", scores[i].log_likelihood()}});
      }
    }
  }
  result.samples = examples;
  result.metrics = {mean_metric("acc", marks.part), mean_metric("exact", marks.whole)};
}

int64_t example_count(const TaskSpec& spec, int64_t usual, const Options& options) {
  const int64_t examples = spec.integer_or("examples", usual, 1);
  return options.limit == 0 ? examples : std::min(examples, options.limit);
}

void run_synthetic(Scorer& scorer, const Options& options, Result& result) {
  const int64_t vocabulary = scorer.decoder().config().vocab_size;
  const SyntheticTask task(result.task, vocabulary);
  MDN_CHECK(task.vocab() <= vocabulary, "{}: vocab is {}, but the model's vocabulary is {}",
            result.task.name(), task.vocab(), vocabulary);
  result.settings = task.settings();
  result.settings["seed"] = options.seed;
  run_generated(example_count(result.task, kSyntheticExamples, options), scorer, options, result,
                [&](int64_t index) {
                  NeedleExample example{task.example(options.seed, Purpose::kEvaluate, index), {}};
                  const auto asked = static_cast<size_t>(std::count_if(
                      example.sequence.targets.begin(), example.sequence.targets.end(),
                      [](int64_t target) { return target != kIgnoredTarget; }));
                  for (size_t i = 0; i < asked; ++i) {
                    example.values.emplace_back(i, i + 1);
                  }
                  return example;
                });
}

void run_needles(Scorer& scorer, const Tokenizer& tokenizer, const Options& options,
                 Result& result) {
  const TaskSpec& spec = result.task;
  std::string essay;
  if (spec.has("text")) {
    essay = read_file(spec.string("text"));
  }
  const NeedleTask task(spec, tokenizer, essay);
  result.settings = task.settings();
  if (spec.has("text")) {
    result.settings["text"] = spec.string("text");
    result.settings["sha256"] = sha256_hex(essay);
  }
  result.settings["seed"] = options.seed;
  run_generated(
      example_count(spec, kNeedleExamples, options), scorer, options, result,
      [&](int64_t index) { return task.example(options.seed, Purpose::kEvaluate, index); });
}

}  // namespace

std::optional<int32_t> prefix_token(const Tokenizer& tokenizer) {
  const auto bos = tokenizer.bos_id();
  return bos ? bos : tokenizer.eos_id();
}

Result run_task(const TaskSpec& task, Scorer& scorer, const Tokenizer* tokenizer,
                const Options& options) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t tokens_before = scorer.tokens();
  const TaskFamily family = task_kind(task.name()).family;
  MDN_CHECK(family == TaskFamily::kSynthetic || tokenizer != nullptr,
            "{}: needs text, and the model's folder has no tokenizer.json; --tokenizer names one",
            task.name());
  Result result;
  result.task = task;
  switch (family) {
    case TaskFamily::kPerplexity:
      run_perplexity(scorer, *tokenizer, options, result);
      break;
    case TaskFamily::kQuestions:
      run_questions(scorer, *tokenizer, options, result);
      break;
    case TaskFamily::kSynthetic:
      run_synthetic(scorer, options, result);
      break;
    case TaskFamily::kNeedles:
      run_needles(scorer, *tokenizer, options, result);
      break;
  }
  result.tokens = scorer.tokens() - tokens_before;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

OrderedJson Result::to_json() const {
  OrderedJson values;
  for (const Metric& metric : metrics) {
    values[metric.name] = {
        {"value", metric.value},
        {"stderr", metric.standard_error ? Json(*metric.standard_error) : Json(nullptr)},
        {"higher_is_better", metric.higher_is_better}};
  }
  return {{"task", task.text()}, {"settings", settings}, {"samples", samples}, {"metrics", values},
          {"tokens", tokens},    {"seconds", seconds},   {"notes", notes}};
}

std::string table(const std::vector<Result>& results) {
  size_t widest = 4;
  for (const Result& result : results) {
    widest = std::max(widest, result.task.text().size());
  }
  constexpr size_t kMost = 60;
  widest = std::min(widest, kMost);
  std::string text = fmt::format("{:<{}}  {:>7}  {:<16}   {:>10}    {:>8}\n", "task", widest,
                                 "samples", "metric", "value", "stderr");
  for (const Result& result : results) {
    std::string name = result.task.text(), samples = std::to_string(result.samples);
    if (name.size() > widest) {
      name = name.substr(0, widest - 3) + "...";
    }
    for (const Metric& metric : result.metrics) {
      text += fmt::format(
          "{:<{}}  {:>7}  {:<16} {} {:>10.4f} {} {:>8}\n", name, widest, samples, metric.name,
          metric.higher_is_better ? "↑" : "↓", metric.value, metric.standard_error ? "±" : " ",
          metric.standard_error ? fmt::format("{:.4f}", *metric.standard_error) : "");
      name.clear();
      samples.clear();
    }
  }
  return text;
}

}  // namespace mdn::evaluate
