// The tasks that `mdn eval` knows: names, keys, what each is.
#pragma once

#include <string>
#include <vector>

#include "mdn/evaluate/task_spec.h"

namespace mdn::evaluate {

enum class TaskFamily { kPerplexity, kQuestions, kSynthetic, kNeedles };

struct TaskKey {
  std::string name;
  std::string help;
};

struct TaskKind {
  std::string name;
  std::string summary;
  TaskFamily family;
  std::vector<TaskKey> keys;
};

const std::vector<TaskKind>& task_kinds();

/// Throws listing the names.
const TaskKind& task_kind(const std::string& name);

/// A task from the command line, its name and keys checked. `extrapolate=N` makes it several: its
/// length (perplexity: its window) times 1, 2, 4, ... up to N.
std::vector<TaskSpec> parse_tasks(const std::string& text);

}  // namespace mdn::evaluate
