// mdn train: train a model, resume a run.
#include <fmt/format.h>
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <map>

#include "apps/mdn/commands.h"
#include "mdn/train/config.h"
#include "mdn/train/progress.h"
#include "mdn/train/run.h"

namespace mdn::app {
namespace {

struct TrainOptions {
  std::string config;
  std::string resume;  // "true": the newest; else a path
  bool overwrite = false;
  std::map<std::string, std::string> keys;
};

std::atomic<int> stop_signal{0};
static_assert(std::atomic<int>::is_always_lock_free);  // safe in a handler

void on_signal(int signal) {
  if (stop_signal.exchange(signal) != 0) {
    ::_exit(128 + signal);  // the second one: at once
  }
}

void run_train(const TrainOptions& options) {
  // The second signal must find the handler still there.
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // Over a file size limit writes fail with an error like any other, rather than killing.
  std::signal(SIGXFSZ, SIG_IGN);
  // Freed activations stay in the process: returning them to the kernel and asking again would
  // clear every page anew in each step.
  ::mallopt(M_MMAP_THRESHOLD, 1 << 30);
  ::mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());

  const train::TrainConfig config = train::read_train_config(
      options.config, train::Overrides(options.keys.begin(), options.keys.end()));
  train::RunOptions how;
  how.resume = options.resume == "true";
  if (!options.resume.empty() && !how.resume) {
    how.resume_from = options.resume;
  }
  how.overwrite = options.overwrite;
  how.stop = &stop_signal;
  const train::RunResult result = train::run(config, how);
  if (result.stopped) {
    fmt::print("train: stopped at step {} by a signal; {} has everything, --resume goes on\n",
               result.step, result.checkpoint.string());
    throw CLI::RuntimeError(128 + stop_signal.load());
  }
  fmt::print("train: {} steps in {}{}; model in {}\n", result.step,
             train::duration_text(result.seconds),
             result.held_out ? fmt::format(", held-out loss {:.4f}", *result.held_out) : "",
             result.checkpoint.string());
}

}  // namespace

void add_train(CLI::App& program) {
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = program.add_subcommand(
      "train",
      "Train a model as a JSON file says; any of its keys can be given as a flag instead.\n"
      "Writes checkpoints, metrics.jsonl, TensorBoard event files and loss_curve.svg into `out`.\n"
      "SIGINT and SIGTERM end the run after the current step with a checkpoint, exit status 130\n"
      "or 143; a second one ends it at once. docs/training.md explains every key.");
  command->add_option("CONFIG", options->config, "the run's JSON file")
      ->required()
      ->check(CLI::ExistingFile);
  command
      ->add_flag("--resume{true}", options->resume,
                 "go on from the newest checkpoint in `out`, or from a given one: --resume=DIR")
      ->type_name("[=DIR]");
  command->add_flag("--overwrite", options->overwrite, "remove an earlier run in `out` first")
      ->excludes("--resume");
  const auto add_key = [&](const std::string& name, const std::string& help) {
    command
        ->add_option_function<std::string>(
            "--" + name, [options, name](const std::string& value) { options->keys[name] = value; },
            help)
        ->group("Keys of CONFIG");
  };
  add_key("model", "config.json of the model, or its folder");
  for (const train::ConfigKey& key : train::config_keys()) {
    add_key(key.name, key.help);
  }
  command->footer(
      "Examples: mdn data corpus/shakespeare.txt --out out/shakespeare\n"
      "          mdn train configs/demo/train.json --data out/shakespeare --out out/demo\n"
      "          mdn train configs/demo/train.json --data out/shakespeare --out out/demo "
      "--resume");
  command->callback([options] { run_train(*options); });
}

}  // namespace mdn::app
