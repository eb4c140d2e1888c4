// mdn synth: made-up tasks as data to train on.
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/mdn/commands.h"
#include "mdn/core/error.h"
#include "mdn/data/dataset_writer.h"
#include "mdn/evaluate/synthetic.h"
#include "mdn/evaluate/tasks.h"
#include "mdn/evaluate/vocabulary.h"
#include "mdn/io/hash.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::app {
namespace {

constexpr int64_t kMqarVocab = 8192;  // Zoology's
constexpr int64_t kUsualVocab = 256;

struct SynthOptions {
  std::vector<std::string> tasks;
  std::string out;
  int64_t examples = 100'000;
  int64_t val_examples = 1000;
  int64_t seed = 0;
  bool replace = false;
};

std::vector<int32_t> narrow(const std::vector<int64_t>& ids) {
  return {ids.begin(), ids.end()};
}

void run_synth(const SynthOptions& options) {
  std::vector<std::pair<evaluate::TaskSpec, evaluate::SyntheticTask>> tasks;
  int64_t vocab = 0, longest = 0;
  for (const std::string& text : options.tasks) {
    for (const evaluate::TaskSpec& spec : evaluate::parse_tasks(text)) {
      tasks.emplace_back(
          spec, evaluate::SyntheticTask(spec, spec.name() == "mqar" ? kMqarVocab : kUsualVocab));
      vocab = std::max(vocab, tasks.back().second.vocab());
      longest = std::max(longest, tasks.back().second.length());
    }
  }
  const auto tokenizer = evaluate::numbered_tokenizer(vocab);
  vocab = tokenizer->vocab_size();
  data::ShardFormat format{.token_bytes = data::token_bytes_for(vocab), .vocab_size = vocab};
  data::Manifest manifest;
  manifest.tokenizer_name = vocab == kUsualVocab ? "bytes" : "numbers";
  manifest.tokenizer_hash = tokenizer->hash();
  for (size_t i = 0; i < format.tokenizer.size(); ++i) {
    format.tokenizer[i] =
        static_cast<uint8_t>(std::stoi(manifest.tokenizer_hash.substr(2 * i, 2), nullptr, 16));
  }
  manifest.vocab_size = vocab;
  manifest.seed = options.seed;
  manifest.split_by = "document";

  data::DatasetWriter writer(options.out,
                             {.format = format, .targets = true, .replace = options.replace});
  for (const auto& [spec, task] : tasks) {
    const int64_t examples = spec.integer_or("examples", options.examples, 1);
    const auto each = [&](int64_t count, evaluate::Purpose purpose, auto add) {
      for (int64_t i = 0; i < count; ++i) {
        const evaluate::Sequence example = task.example(options.seed, purpose, i);
        // There is no text: a token counts as a byte of it.
        add(narrow(example.inputs), static_cast<int64_t>(example.inputs.size()),
            narrow(example.targets));
      }
    };
    each(examples, evaluate::Purpose::kTrain,
         [&](const auto&... parts) { writer.add_train(parts...); });
    each(options.val_examples, evaluate::Purpose::kHeldOut,
         [&](const auto&... parts) { writer.add_val(parts...); });
    fmt::print("{}: {} examples of {} tokens, {} held out\n", spec.text(), examples, task.length(),
               options.val_examples);
  }
  tokenizer->save(writer.partial());
  writer.finish(manifest);
  fmt::print(
      "{}: {} tokens to train on, {} held out, a vocabulary of {}\n"
      "train with \"order\": \"documents\" and a length of {}\n",
      options.out, writer.train_tokens(), writer.val_tokens(), vocab, longest);
}

}  // namespace

void add_synth(CLI::App& program) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command = program.add_subcommand(
      "synth",
      "Write examples of made-up tasks as token shards, with targets of their own, for `mdn "
      "train`.\n"
      "Tasks are mqar, copy, parity, s3 and s5, with the keys that `mdn eval --list` shows; "
      "several\n"
      "are mixed. Examples that `mdn eval` makes with the same seed are others than these.");
  command->add_option("TASK", options->tasks, "NAME or NAME:key=value,...")->required();
  command->add_option("--out", options->out, "folder to write")->required();
  command
      ->add_option("--examples", options->examples,
                   "to train on, of each task without a key `examples`")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--val-examples", options->val_examples, "held out, of each task")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--seed", options->seed, "of the examples")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_flag("--replace", options->replace,
                    "put it in the place of a data folder of that name");
  command->footer(
      "Examples: mdn synth parity:length=32 --examples 20000 --out out/parity\n"
      "          mdn synth mqar:length=64,pairs=4 mqar:length=128,pairs=16,examples=20000 --out "
      "out/mqar\n"
      "          mdn train configs/demo/train.json --data out/parity --order documents --length 32 "
      "--out out/parity-run");
  command->callback([options] { run_synth(*options); });
}

}  // namespace mdn::app
