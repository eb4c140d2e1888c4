#include "mdn/train/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn::train {
namespace {

using C = TrainConfig;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kCount = 9e15;  // counts stay exact as doubles
constexpr double kSize = 2147483647.0;
constexpr int64_t kLargestBatch = int64_t{1} << 24;  // tokens at once: no machine holds more

std::string known_keys() {
  std::string names = "model";
  for (const ConfigKey& key : config_keys()) {
    names += std::string(", ") + key.name;
  }
  return names;
}

const ConfigKey* find_key(const std::string& name) {
  for (const ConfigKey& key : config_keys()) {
    if (name == key.name) {
      return &key;
    }
  }
  return nullptr;
}

int64_t read_integer(const ConfigKey& key, const JsonObject& from) {
  return from.integer(key.name, static_cast<int64_t>(key.lowest),
                      static_cast<int64_t>(key.highest));
}

// `from` has the key; null stands for "not set" where that is possible.
void read_key(const ConfigKey& key, const JsonObject& from, TrainConfig& config) {
  const bool null = !from.has(key.name);
  if (const auto* text = std::get_if<std::string C::*>(&key.field)) {
    const std::string value = from.string(key.name);
    if (!key.allowed.empty() &&
        std::find(key.allowed.begin(), key.allowed.end(), value) == key.allowed.end()) {
      from.fail(key.name, fmt::format("one of {}", fmt::join(key.allowed, ", ")));
    }
    config.** text = value;
  } else if (const auto* flag = std::get_if<bool C::*>(&key.field)) {
    config.** flag = from.boolean(key.name);
  } else if (const auto* integer = std::get_if<int64_t C::*>(&key.field)) {
    config.** integer = read_integer(key, from);
  } else if (const auto* real = std::get_if<double C::*>(&key.field)) {
    config.** real = from.real(key.name, key.lowest, key.highest);
  } else if (const auto* maybe_integer = std::get_if<std::optional<int64_t> C::*>(&key.field)) {
    config.** maybe_integer = null ? std::nullopt : std::optional(read_integer(key, from));
  } else if (const auto* maybe_real = std::get_if<std::optional<double> C::*>(&key.field)) {
    config.** maybe_real =
        null ? std::nullopt : std::optional(from.real(key.name, key.lowest, key.highest));
  }
}

// The text of a flag as the JSON value that the file would have: words that are not JSON are
// strings, and so is everything where a string belongs.
Json flag_value(const ConfigKey& key, const std::string& text) {
  if (std::holds_alternative<std::string C::*>(key.field)) {
    return text;
  }
  Json value = Json::parse(text, nullptr, false);
  return value.is_discarded() ? Json(text) : value;
}

std::string read_model(const Json& value, const std::string& name) {
  namespace fs = std::filesystem;
  if (value.is_object()) {
    return value.dump(2) + "\n";
  }
  MDN_CHECK(value.is_string(),
            "{}: \"model\" is {}; allowed: an object with the keys of a config.json, or the path "
            "of one",
            name, brief_json(value));
  const fs::path given = value.get<std::string>();
  const fs::path path = given.is_absolute() ? given : fs::path(name).parent_path() / given;
  return read_file(fs::is_directory(path) ? path / "config.json" : path);
}

void check(const TrainConfig& c, const std::string& name) {
  const auto require = [&](bool ok, const std::string& message) {
    MDN_CHECK(ok, "{}: {}", name, message);
  };
  require(!c.model.empty(), "\"model\" is missing: a path to a config.json, or its keys");
  require(!c.data.empty(), "\"data\" is missing: a folder that `mdn data` wrote");
  require(!c.out.empty(), "\"out\" is missing: the folder for checkpoints and metrics");
  require(c.max_steps || c.max_seconds,
          "give \"max_steps\", \"max_seconds\" or both: nothing says when training ends");
  require(!(c.warmup_steps && c.warmup_fraction),
          "\"warmup_steps\" and \"warmup_fraction\" contradict each other: give one");
  require(!(c.warmup_steps && c.max_seconds),
          "\"warmup_steps\" needs a run counted in steps; with \"max_seconds\" give "
          "\"warmup_fraction\"");
  require(!(c.warmup_steps && c.max_steps && *c.warmup_steps > *c.max_steps),
          fmt::format("\"warmup_steps\" is {}, more than \"max_steps\" {}",
                      c.warmup_steps.value_or(0), c.max_steps.value_or(0)));
  require(c.rows * c.length <= kLargestBatch,
          fmt::format("{} rows of {} tokens are {} in a micro-batch; at most {} are allowed, and "
                      "\"accumulate\" adds up several",
                      c.rows, c.length, c.rows * c.length, kLargestBatch));
  require(c.schedule != "wsd" || c.warmup_fraction.value_or(0) + c.decay_fraction <= 1,
          fmt::format("\"warmup_fraction\" {} and \"decay_fraction\" {} overlap: their sum may be "
                      "at most 1",
                      c.warmup_fraction.value_or(0), c.decay_fraction));
}

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = {
      {"data", &C::data, "folder that `mdn data` wrote"},
      {"out", &C::out, "folder for checkpoints, metrics and the loss curve"},
      {"init_from", &C::init_from, "model folder whose weights to start from"},
      {"rows", &C::rows, "rows of a micro-batch", 1, kSize},
      {"length", &C::length, "tokens of a row", 1, kSize},
      {"accumulate", &C::accumulate, "micro-batches of a step", 1, kSize},
      {"order",
       &C::order,
       "packed: documents end to end; windows: random places; documents: one a row",
       0,
       0,
       {"packed", "windows", "documents"}},
      {"separate_documents", &C::separate_documents, "no state passes between documents"},
      {"max_steps", &C::max_steps, "stop after so many steps", 1, kCount},
      {"max_seconds", &C::max_seconds, "stop in time for this wall clock", 1e-3, kCount},
      {"learning_rate", &C::learning_rate, "AdamW's, at the top of the schedule", 0, kInfinity},
      {"beta1", &C::beta1, "AdamW's decay of the mean", 0, 1 - 1e-9},
      {"beta2", &C::beta2, "AdamW's decay of the mean square", 0, 1 - 1e-9},
      {"eps", &C::eps, "AdamW's floor of the divisor", 0, kInfinity},
      {"weight_decay", &C::weight_decay, "of matrices and convolutions", 0, kInfinity},
      {"clip", &C::clip, "largest global gradient norm; 0: none", 0, kInfinity},
      {"schedule", &C::schedule, "after the warm-up", 0, 0, {"cosine", "wsd", "constant"}},
      {"warmup_steps", &C::warmup_steps, "steps of linear warm-up", 0, kCount},
      {"warmup_fraction", &C::warmup_fraction, "the same as a share of the run", 0, 1},
      {"decay_fraction", &C::decay_fraction, "wsd: share of the run that decays", 0, 1},
      {"final_lr_fraction", &C::final_lr_fraction, "the rate at the end, of the top", 0, 1},
      {"seed", &C::seed, "of the initial weights", 0, kCount},
      {"data_seed", &C::data_seed, "of the order of rows; null: seed", 0, kCount},
      {"device", &C::device, "cpu, cuda or cuda:N"},
      {"dtype",
       &C::dtype,
       "of activations; bfloat16 keeps float32 weights",
       0,
       0,
       {"float32", "bfloat16", "float64"}},
      {"threads", &C::threads, "CPU threads; 0: all", 0, 4096},
      {"deterministic", &C::deterministic, "the same bits in every run with attention on a GPU"},
      {"eval_every", &C::eval_every, "steps between held-out losses; 0: never", 0, kCount},
      {"eval_tokens", &C::eval_tokens, "tokens of one; 0: the whole split", 0, kCount},
      {"final_eval_tokens", &C::final_eval_tokens, "tokens of the last one; 0: whole", 0, kCount},
      {"eval_rows", &C::eval_rows, "rows of an evaluation batch; null: rows", 1, kSize},
      {"eval_length", &C::eval_length, "tokens of its rows; null: length", 1, kSize},
      {"log_every", &C::log_every, "steps between lines of metrics", 1, kCount},
      {"checkpoint_every", &C::checkpoint_every, "steps between checkpoints; 0: at the end", 0,
       kCount},
      {"keep", &C::keep, "newest checkpoints kept", 1, kCount},
      {"max_skips", &C::max_skips, "non-finite steps in a row before it stops", 0, kCount},
  };
  return keys;
}

TrainConfig parse_train_config(const std::string& text, const std::string& name,
                               const Overrides& overrides) {
  const Json document = parse_json(text, name);
  const JsonObject object(document, name);
  TrainConfig config;
  for (const auto& item : document.items()) {
    if (item.key() == "model") {
      config.model = read_model(item.value(), name);
      continue;
    }
    const ConfigKey* key = find_key(item.key());
    MDN_CHECK(key != nullptr, "{}: unknown key '{}'; known: {}", name, item.key(), known_keys());
    read_key(*key, object, config);
  }
  for (const auto& [flag, value] : overrides) {
    if (flag == "model") {
      config.model = read_model(value, "");
      continue;
    }
    const ConfigKey* key = find_key(flag);
    MDN_CHECK(key != nullptr, "unknown key '{}'; known: {}", flag, known_keys());
    const Json given = {{flag, flag_value(*key, value)}};
    read_key(*key, JsonObject(given, "the command line"), config);
  }
  check(config, name);
  return config;
}

TrainConfig read_train_config(const std::string& path, const Overrides& overrides) {
  return parse_train_config(read_file(path), path, overrides);
}

OrderedJson to_json(const TrainConfig& config) {
  OrderedJson json;
  for (const ConfigKey& key : config_keys()) {
    std::visit(
        [&](auto field) {
          if constexpr (requires { (config.*field).has_value(); }) {
            json[key.name] = nullptr;
            if (config.*field) {
              json[key.name] = *(config.*field);
            }
          } else {
            json[key.name] = config.*field;
          }
        },
        key.field);
  }
  return json;
}

}  // namespace mdn::train
