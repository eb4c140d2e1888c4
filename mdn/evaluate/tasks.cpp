#include "mdn/evaluate/tasks.h"

#include "mdn/core/error.h"
#include "mdn/evaluate/needles.h"
#include "mdn/evaluate/questions.h"
#include "mdn/evaluate/synthetic.h"

namespace mdn::evaluate {
namespace {

constexpr int64_t kMostTimes = 1 << 16;

std::vector<TaskKey> synthetic_keys(const std::string& name) {
  std::vector<TaskKey> keys = {{"length", "tokens of an example (64)"}};
  if (name == "mqar") {
    keys.push_back({"pairs", "keys with values (8); at least 4 tokens of length each"});
    keys.push_back({"power", "of the power law of gaps; 1 is uniform (0.01)"});
    keys.push_back({"fill", "1: random tokens between the queries, 0: token 0 (1)"});
  } else if (name == "copy") {
    keys.push_back({"symbols", "different symbols (26)"});
  }
  keys.push_back({"vocab", "ids are below it (eval: the model's, synth: mqar 8192, else 256)"});
  keys.push_back({"examples", "how many (1000)"});
  keys.push_back({"extrapolate", "also at 2, 4, ... times the length, up to this"});
  return keys;
}

std::string synthetic_summary(const std::string& name) {
  return name == "mqar"     ? "multi-query associative recall, as Zoology makes it"
         : name == "copy"   ? "repeat a string of symbols"
         : name == "parity" ? "running parity of bits"
                            : "running product of permutations of " + name.substr(1) + " things";
}

std::vector<TaskKind> make_kinds() {
  std::vector<TaskKind> kinds;
  kinds.push_back({"perplexity",
                   "of a text, of documents (JSONL) or of token shards",
                   TaskFamily::kPerplexity,
                   {{"file", "text or JSONL, also .gz and .zst"},
                    {"format", "of file: auto, text or jsonl (auto)"},
                    {"field", "JSONL: the key that holds the text (text)"},
                    {"data", "instead of file: a folder that mdn data wrote"},
                    {"split", "of data: train or val (val)"},
                    {"window", "tokens the model reads at most; 0: whole documents (2048)"},
                    {"stride", "tokens a window predicts after the first (window: disjoint)"},
                    {"extrapolate", "also with 2, 4, ... times the window, up to this"}}});
  for (const QuestionTask& task : question_tasks()) {
    std::vector<TaskKey> keys = {
        {"file", std::string("JSONL with the fields ") + task.fields},
        {"window", "tokens the model reads at most; older context is left out (2048; 0: all)"}};
    if (task.label_key != nullptr) {
      keys.push_back({"labels", "file with one label a line, where the lines have none"});
    }
    kinds.push_back({task.name,
                     task.last_word    ? "the last word of a passage"
                     : task.normalised ? "multiple choice: acc, acc_norm, acc_bytes"
                                       : "multiple choice: acc",
                     TaskFamily::kQuestions, std::move(keys)});
  }
  for (const char* name : {"mqar", "copy", "parity", "s3", "s5"}) {
    kinds.push_back({name, synthetic_summary(name), TaskFamily::kSynthetic, synthetic_keys(name)});
  }
  for (const std::string& name : NeedleTask::names()) {
    std::vector<TaskKey> keys = {{"length", "tokens of an example, answer included (4096)"},
                                 {"examples", "how many (500)"},
                                 {"extrapolate", "also at 2, 4, ... times the length, up to this"}};
    if (NeedleTask::needs_essay(name)) {
      keys.insert(keys.begin(), {"text", "file of prose for the haystacks"});
    }
    kinds.push_back({name, "needles in a haystack, as RULER makes them", TaskFamily::kNeedles,
                     std::move(keys)});
  }
  return kinds;
}

}  // namespace

const std::vector<TaskKind>& task_kinds() {
  static const std::vector<TaskKind> kinds = make_kinds();
  return kinds;
}

const TaskKind& task_kind(const std::string& name) {
  std::vector<std::string> names;
  for (const TaskKind& kind : task_kinds()) {
    if (kind.name == name) {
      return kind;
    }
    names.push_back(kind.name);
  }
  MDN_THROW("no task is called '{}'; the tasks are {} (mdn eval --list says more)", name,
            fmt::join(names, ", "));
}

std::vector<TaskSpec> parse_tasks(const std::string& text) {
  TaskSpec spec = TaskSpec::parse(text);
  const TaskKind& kind = task_kind(spec.name());
  std::vector<std::string> keys;
  for (const TaskKey& key : kind.keys) {
    keys.push_back(key.name);
  }
  spec.check_keys(keys);
  const int64_t most = spec.integer_or("extrapolate", 1, 1, kMostTimes);
  if (!spec.has("extrapolate")) {
    return {spec};
  }
  const std::string scaled = kind.family == TaskFamily::kPerplexity ? "window" : "length";
  MDN_CHECK(spec.has(scaled),
            "{}: extrapolate multiplies the {}; give it: {}:{}=...,extrapolate={}", spec.name(),
            scaled, spec.name(), scaled, most);
  const int64_t base = spec.integer_or(scaled, 0, 1, std::numeric_limits<int64_t>::max() / most);
  spec.erase("extrapolate");
  std::vector<TaskSpec> specs;
  for (int64_t times = 1; times <= most; times *= 2) {
    spec.set(scaled, std::to_string(base * times));
    specs.push_back(spec);
  }
  return specs;
}

}  // namespace mdn::evaluate
