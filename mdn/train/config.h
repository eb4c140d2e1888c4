// What a training run is told: one readable JSON file, any key of which a flag may override.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "mdn/io/json.h"

namespace mdn::train {

/// Every key of the file under its own name, with its default. docs/training.md explains them.
struct TrainConfig {
  std::string model;  // text of a config.json, whether the file had a path or the keys themselves
  std::string data;
  std::string out;
  std::string init_from;

  int64_t rows = 8;
  int64_t length = 256;
  int64_t accumulate = 1;
  std::string order = "packed";
  bool separate_documents = true;

  std::optional<int64_t> max_steps;
  std::optional<double> max_seconds;

  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;

  std::string schedule = "cosine";
  std::optional<int64_t> warmup_steps;
  std::optional<double> warmup_fraction;
  double decay_fraction = 0.2;
  double final_lr_fraction = 0.1;

  int64_t seed = 0;
  std::optional<int64_t> data_seed;
  std::string device = "cpu";
  std::string dtype = "float32";
  int64_t threads = 0;
  bool deterministic = false;

  int64_t eval_every = 100;
  int64_t eval_tokens = 65536;
  int64_t final_eval_tokens = 0;
  std::optional<int64_t> eval_rows;
  std::optional<int64_t> eval_length;

  int64_t log_every = 10;
  int64_t checkpoint_every = 500;
  int64_t keep = 3;
  int64_t max_skips = 10;

  int64_t order_seed() const { return data_seed.value_or(seed); }
  int64_t evaluation_rows() const { return eval_rows.value_or(rows); }
  int64_t evaluation_length() const { return eval_length.value_or(length); }
  int64_t tokens_a_step() const { return rows * length * accumulate; }
};

/// One key: where its value goes, what is allowed, and a line for `mdn train --help`.
struct ConfigKey {
  using Field =
      std::variant<std::string TrainConfig::*, bool TrainConfig::*, int64_t TrainConfig::*,
                   double TrainConfig::*, std::optional<int64_t> TrainConfig::*,
                   std::optional<double> TrainConfig::*>;
  const char* name;
  Field field;
  const char* help;
  double lowest = 0;  // of numbers
  double highest = 0;
  std::vector<std::string_view> allowed = {};  // of strings; empty: any
};

/// All keys but `model`, in the order of the struct.
const std::vector<ConfigKey>& config_keys();

/// A key and its text from the command line. `model` is a path there.
using Overrides = std::vector<std::pair<std::string, std::string>>;

/// Reads the file, applies the overrides, checks every value and what they say together. `model`
/// in the file is an object with the published keys, or a path relative to the file; `data`, `out`
/// and `init_from` are relative to the working directory. Throws naming the key, the value and
/// what is allowed; unknown keys are errors that list the known ones.
TrainConfig read_train_config(const std::string& path, const Overrides& overrides = {});

/// The same over a text; `name` opens every message and gives the folder of a relative `model`.
TrainConfig parse_train_config(const std::string& text, const std::string& name,
                               const Overrides& overrides = {});

/// All keys but `model` (a checkpoint has config.json for it) with the values in force.
OrderedJson to_json(const TrainConfig& config);

}  // namespace mdn::train
