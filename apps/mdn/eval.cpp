// mdn eval: what a model is worth on texts, questions and made-up tasks.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <memory>

#include "apps/mdn/clock.h"
#include "apps/mdn/commands.h"
#include "apps/mdn/device.h"
#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/evaluate/evaluate.h"
#include "mdn/generate/prompts.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"
#include "mdn/io/safetensors.h"
#include "mdn/model/decoder.h"

namespace mdn::app {
namespace {

namespace fs = std::filesystem;

constexpr const char* kResultFormat = "mdn-eval";
constexpr int64_t kResultVersion = 1;

struct EvalOptions {
  std::string model;
  std::vector<std::string> tasks;
  std::string tokenizer;
  std::string out;
  std::string samples;
  bool list = false;
  int64_t batch_tokens = 8192;
  DeviceOptions device;
  evaluate::Options evaluate;
};

/// One line that is drawn over itself, on a terminal only.
class TaskBar {
 public:
  explicit TaskBar(const std::string& name) : name_(name) {}
  ~TaskBar() {
    if (shown_) {
      fmt::print(stderr, "\r\x1b[K");
    }
  }
  void show(double done) {
    if (isatty(STDERR_FILENO) == 0 || (shown_ && seconds_since(drawn_) < 0.1)) {
      return;
    }
    drawn_ = Clock::now();
    shown_ = true;
    constexpr double kWidth = 24;
    const double elapsed = seconds_since(start_);
    const auto full = static_cast<size_t>(std::clamp(done, 0.0, 1.0) * kWidth);
    fmt::print(stderr, "\r[{:-<{}}] {:3.0f}%  {}  {:.0f} s left \x1b[K", std::string(full, '#'),
               static_cast<int>(kWidth), 100 * done, name_,
               done > 0 ? elapsed * (1 - done) / done : 0.0);
  }

 private:
  std::string name_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_;
  bool shown_ = false;
};

void list_tasks() {
  for (const evaluate::TaskKind& kind : evaluate::task_kinds()) {
    fmt::print("{}: {}\n", kind.name, kind.summary);
    for (const evaluate::TaskKey& key : kind.keys) {
      fmt::print("    {:<12} {}\n", key.name, key.help);
    }
  }
}

std::string file_sha256(const fs::path& path) {
  return sha256_hex(MappedFile(path).bytes());
}

/// What identifies the model.
OrderedJson describe_model(const fs::path& folder, const model::Decoder& decoder) {
  OrderedJson weights;
  const SafetensorsSet files(folder);
  for (const auto& file : files.files()) {
    weights[file->path().filename().string()] = file_sha256(file->path());
  }
  return {{"folder", folder.string()},
          {"model_type", decoder.config().model_type},
          {"parameters", decoder.parameters().count()},
          {"config_sha256", sha256_hex(decoder.config().json)},
          {"weights_sha256", weights}};
}

/// Of --tokenizer, `given`, or else of the model's folder; null when that has none.
std::unique_ptr<Tokenizer> find_tokenizer(const std::string& given, const fs::path& folder,
                                          const model::Config& config) {
  const fs::path path = given.empty() ? folder : fs::path(given);
  if (given.empty() && !fs::exists(path / kTokenizerFile)) {
    return nullptr;
  }
  auto tokenizer = load_tokenizer(path);
  MDN_CHECK(tokenizer->vocab_size() <= config.vocab_size,
            "{}: the tokenizer has {} tokens but the model's vocabulary is {}: the tokenizer of "
            "another model",
            path.string(), tokenizer->vocab_size(), config.vocab_size);
  return tokenizer;
}

void write_line(std::ofstream& stream, const std::string& path, const OrderedJson& json) {
  stream << json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) << '\n';
  MDN_CHECK(stream.good(), "{}: cannot be written", path);
}

void run_eval(const EvalOptions& options, const std::vector<std::string>& command_line) {
  if (options.list) {
    list_tasks();
    return;
  }
  MDN_CHECK(!options.model.empty() && !options.tasks.empty(),
            "name a model and at least one task: mdn eval MODEL TASK...; mdn eval --list shows the "
            "tasks");
  std::vector<evaluate::TaskSpec> tasks;
  for (const std::string& text : options.tasks) {
    const auto more = evaluate::parse_tasks(text);
    tasks.insert(tasks.end(), more.begin(), more.end());
  }
  std::ofstream samples;
  if (!options.samples.empty()) {
    samples.open(options.samples, std::ios::binary);
    MDN_CHECK(samples.good(), "{}: cannot be written", options.samples);
  }
  const c10::Device device = options.device.device();
  const fs::path folder = generate::find_model(options.model);
  const model::Decoder decoder = model::load_decoder(folder, options.device.type(), device);
  const auto tokenizer = find_tokenizer(options.tokenizer, folder, decoder.config());
  evaluate::Scorer scorer(decoder, device, options.batch_tokens);

  std::vector<evaluate::Result> results;
  for (const evaluate::TaskSpec& task : tasks) {
    TaskBar bar(task.text());
    evaluate::Options how = options.evaluate;
    how.progress = [&bar](double done) { bar.show(done); };
    if (samples.is_open()) {
      how.sample = [&](const OrderedJson& sample) {
        OrderedJson line = {{"task", task.text()}};
        line.update(sample);
        write_line(samples, options.samples, line);
      };
    }
    results.push_back(evaluate::run_task(task, scorer, tokenizer.get(), how));
  }
  fmt::print("{}", evaluate::table(results));
  for (const evaluate::Result& result : results) {
    for (const std::string& note : result.notes) {
      fmt::print("{}: {}\n", result.task.text(), note);
    }
  }
  if (options.out.empty()) {
    return;
  }
  OrderedJson json = {{"format", kResultFormat},
                      {"version", kResultVersion},
                      {"program", MDN_VERSION},
                      {"command", command_line},
                      {"model", describe_model(folder, decoder)},
                      {"tokenizer_sha256", tokenizer ? Json(tokenizer->hash()) : Json(nullptr)},
                      {"device", options.device.name},
                      {"dtype", options.device.dtype},
                      {"threads", num_threads()},
                      {"batch_tokens", options.batch_tokens},
                      {"limit", options.evaluate.limit},
                      {"seed", options.evaluate.seed},
                      {"results", OrderedJson::array()}};
  for (const evaluate::Result& result : results) {
    json["results"].push_back(result.to_json());
  }
  write_file_atomically(options.out,
                        json.dump(2, ' ', false, OrderedJson::error_handler_t::replace) + "\n");
}

}  // namespace

void add_eval(CLI::App& program) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = program.add_subcommand(
      "eval",
      "Measure a model: perplexity of texts, multiple choice and last words on the public data\n"
      "sets' own JSONL, and made-up tasks of recall, copying, retrieval and state tracking.\n"
      "A task is NAME or NAME:key=value,key=value; --list shows all with their keys.\n"
      "docs/evaluation.md says how each is defined.");
  command
      ->add_option("MODEL", options->model,
                   "a model's folder (config.json, model.safetensors), or a run's: its newest "
                   "checkpoint")
      ->check(CLI::ExistingDirectory);
  command->add_option("TASK", options->tasks, "what to run, one after another");
  command->add_flag("--list", options->list, "show every task with its keys, and stop");
  command
      ->add_option("--limit", options->evaluate.limit,
                   "take only so many documents, questions or examples of each task; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", options->evaluate.seed, "of the made-up tasks")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option(
          "--batch-tokens", options->batch_tokens,
          "tokens the model reads at once: memory against speed. Longer texts are read in\n"
          "pieces of it that hand on the model's state")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer,
                      "tokenizer.json, or its folder; default: the model's");
  add_device_options(*command, options->device);
  command->add_option("--out", options->out,
                      "write the results as JSON, with all that is needed to repeat them");
  command->add_option("--samples", options->samples,
                      "write a JSON line for each document, question or example");
  command->footer(
      "Examples: mdn eval out/demo perplexity:data=out/shakespeare,window=512\n"
      "          mdn eval MODEL perplexity:file=book.txt,window=512,stride=128 --out results.json\n"
      "          mdn eval MODEL hellaswag:file=hellaswag_val.jsonl lambada:file=lambada.jsonl\n"
      "          mdn eval MODEL mqar:pairs=16,length=256 parity:length=64,extrapolate=16\n"
      "          mdn eval MODEL niah_single_1:length=2048 --limit 50 --device cuda --dtype "
      "bfloat16");
  command->callback([options, &program] {
    std::vector<std::string> words;
    for (const CLI::Option* option : program.get_subcommand("eval")->get_options()) {
      if (option->count() > 0) {
        if (!option->get_positional()) {
          words.push_back(option->get_name());
        }
        words.insert(words.end(), option->results().begin(), option->results().end());
      }
    }
    run_eval(*options, words);
  });
}

}  // namespace mdn::app
