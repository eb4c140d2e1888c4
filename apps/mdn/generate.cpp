// mdn generate: continue prompts with a model.
#include "mdn/generate/generator.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <memory>

#include "apps/mdn/commands.h"
#include "apps/mdn/device.h"
#include "apps/mdn/generate_repl.h"
#include "mdn/core/error.h"
#include "mdn/generate/passage_text.h"
#include "mdn/generate/prompts.h"
#include "mdn/io/json.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn::app {
namespace {

using generate::Prompt;

// CLI11 takes a number too long for its type as the largest one, so there are limits.
constexpr int64_t kMostTokens = int64_t{1} << 40;
constexpr int64_t kMostRows = int64_t{1} << 20;
constexpr int64_t kMostThreads = 4096;
constexpr int64_t kLargestSeed = int64_t{1} << 62;

std::atomic<bool> interrupted{false};

void on_interrupt(int) {
  interrupted = true;
}

// While it lives, Ctrl-C sets `interrupted`.
class InterruptGuard {
 public:
  InterruptGuard() {
    interrupted = false;
    struct sigaction action = {};
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, &before_);
  }
  ~InterruptGuard() { sigaction(SIGINT, &before_, nullptr); }

 private:
  struct sigaction before_ = {};
};

struct GenerateOptions {
  std::string folder;
  std::vector<std::string> prompts, ids;
  std::string prompt_file;
  GenerateSettings settings;
  int64_t samples = 1, batch = 16, threads = 0;
  std::string save_state, load_state;
  bool interactive = false, json = false, echo = false, no_bos = false, quiet = false;
  DeviceOptions device;
};

std::vector<Prompt> collect_prompts(const GenerateOptions& options) {
  std::vector<Prompt> prompts;
  for (const std::string& text : options.prompts) {
    prompts.push_back({text, std::nullopt, std::nullopt, std::nullopt});
  }
  for (const std::string& text : options.ids) {
    prompts.push_back({"", generate::parse_ids(text), std::nullopt, std::nullopt});
  }
  if (!options.prompt_file.empty()) {
    const auto more = generate::read_prompts(options.prompt_file);
    prompts.insert(prompts.end(), more.begin(), more.end());
  }
  return prompts;
}

// A model without tokenizer.json can still be run by ids.
std::unique_ptr<Tokenizer> find_tokenizer(const std::filesystem::path& folder, bool needed,
                                          const model::Config& config) {
  if (!std::filesystem::exists(folder / kTokenizerFile)) {
    MDN_CHECK(!needed,
              "{}: there is no {} here, so text can be neither read nor written; copy the model's "
              "tokenizer.json into the folder, or give and get token ids with --ids",
              folder.string(), kTokenizerFile);
    return nullptr;
  }
  auto tokenizer = load_tokenizer(folder);
  MDN_CHECK(tokenizer->vocab_size() <= config.vocab_size,
            "{}: the tokenizer has {} tokens but the model's vocabulary is {}: the tokenizer of "
            "another model",
            folder.string(), tokenizer->vocab_size(), config.vocab_size);
  return tokenizer;
}

void report(const generate::Timing& timing, bool quiet) {
  if (quiet) {
    return;
  }
  const auto rate = [](int64_t tokens, double seconds) {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  };
  fmt::print(
      stderr,
      "prefill {} tokens in {:.2f} s ({:.0f} tokens/s), decode {} in {:.2f} s ({:.0f} tokens/s)\n",
      timing.prefill_tokens, timing.prefill_seconds,
      rate(timing.prefill_tokens, timing.prefill_seconds), timing.decode_tokens,
      timing.decode_seconds, rate(timing.decode_tokens, timing.decode_seconds));
}

// One continuation to make: which prompt, which sample of it, and what came of it.
struct Job {
  size_t prompt;
  int64_t sample;
  std::unique_ptr<generate::PassageText> text;  // null: ids only
  std::vector<int64_t> ids;                     // made so far
};

OrderedJson json_of(const Job& job, const Prompt& prompt, const generate::Request& request,
                    const generate::Passage& passage) {
  OrderedJson out;
  out["prompt"] = job.prompt;
  out["sample"] = job.sample;
  if (prompt.ids) {
    out["prompt_ids"] = request.prompt;
  } else {
    out["prompt_text"] = utf8_replace_invalid(prompt.text);
    out["prompt_tokens"] = request.prompt.size();
  }
  if (job.text) {
    out["text"] = job.text->text();
  }
  out["ids"] = passage.tokens;
  const bool stop_string = passage.finish == generate::Finish::kStopped;
  out["finish"] = stop_string ? "stop-string" : generate::name_of(passage.finish);
  if (stop_string) {
    out["stop"] = job.text->matched();
  }
  out["seed"] = request.random ? OrderedJson(request.random->seed) : OrderedJson(nullptr);
  return out;
}

void run_generate(const GenerateOptions& options) {
  std::vector<Prompt> prompts = collect_prompts(options);
  generate::check(options.settings.sampler);
  MDN_CHECK(!options.interactive || (prompts.empty() && !options.json),
            "--interactive reads its prompts from the keyboard: leave out --prompt, --prompt-file, "
            "--ids and --json");
  MDN_CHECK(options.interactive || !prompts.empty() || !options.load_state.empty(),
            "nothing to continue: give --prompt TEXT, --prompt-file FILE, --ids, --load-state FILE "
            "or --interactive");
  const bool goes_on = prompts.empty();  // a state, as it is
  if (goes_on) {
    prompts.emplace_back();
  }
  MDN_CHECK(options.save_state.empty() || (prompts.size() == 1 && options.samples == 1),
            "--save-state keeps one state; give one prompt and one sample, not {} and {}",
            prompts.size(), options.samples);
  if (options.threads > 0) {
    at::set_num_threads(static_cast<int>(options.threads));
  }

  const std::filesystem::path folder = generate::find_model(options.folder);
  const model::Decoder decoder =
      model::load_decoder(folder, options.device.type(), options.device.device());
  const bool by_text = !goes_on && std::any_of(prompts.begin(), prompts.end(),
                                               [](const Prompt& p) { return !p.ids; });
  const bool text_needed = options.interactive || by_text || !options.settings.stop.empty();
  const auto tokenizer = find_tokenizer(folder, text_needed, decoder.config());
  GenerateSettings settings = options.settings;
  settings.end_tokens = end_tokens(settings, decoder.config(), tokenizer.get());
  std::optional<generate::Context> start;
  if (!options.load_state.empty()) {
    start = generate::load_context(options.load_state, decoder);
  }
  if (options.interactive) {
    const InterruptGuard guard;
    run_repl({decoder, *tokenizer, settings, std::move(start), interrupted, !options.no_bos});
    return;
  }

  std::vector<Job> jobs;
  std::vector<generate::Request> requests;
  for (size_t p = 0; p < prompts.size(); ++p) {
    for (int64_t sample = 0; sample < options.samples; ++sample) {
      generate::Request request;
      request.start = start ? &*start : nullptr;
      if (!goes_on) {
        request.prompt = prompts[p].ids
                             ? *prompts[p].ids
                             : prompt_ids(*tokenizer, prompts[p].text, !start && !options.no_bos);
      }
      request.sampler = settings.sampler;
      request.max_tokens = prompts[p].max_tokens.value_or(settings.max_tokens);
      request.end_tokens = settings.end_tokens;
      // A state goes on with its own random numbers, unless told otherwise.
      if (!start || settings.seed || prompts[p].seed || sample > 0) {
        request.random =
            generate::RandomStream{.seed = prompts[p].seed.value_or(settings.seed.value_or(0)),
                                   .stream = static_cast<uint64_t>(sample)};
      }
      requests.push_back(std::move(request));
      jobs.push_back(
          {p,
           sample,
           tokenizer ? std::make_unique<generate::PassageText>(*tokenizer, settings.stop) : nullptr,
           {}});
    }
  }

  const bool stream = jobs.size() == 1 && !options.json;
  const auto show = [](const std::string& piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
  };
  if (stream && options.echo) {
    show(utf8_replace_invalid(prompts[0].text));
  }
  const auto on_token = [&](size_t index, int64_t id) {
    Job& job = jobs[index];
    if (!job.text) {
      if (stream) {
        show(fmt::format("{}{}", job.ids.empty() ? "" : " ", id));
      }
      job.ids.push_back(id);
      return true;
    }
    const std::string piece = job.text->push(static_cast<int32_t>(id));
    if (stream) {
      show(piece);
    }
    return !job.text->stopped();
  };
  generate::Generator generator(
      decoder, {.batch = options.batch, .keep_contexts = !options.save_state.empty()});
  std::vector<generate::Passage> passages;
  {
    const InterruptGuard guard;
    passages = generator.run(requests, on_token, &interrupted);
  }
  for (size_t j = 0; j < jobs.size(); ++j) {
    Job& job = jobs[j];
    const std::string rest = job.text ? job.text->finish() : "";
    const Prompt& prompt = prompts[job.prompt];
    if (options.json) {
      show(json_of(job, prompt, requests[j], passages[j]).dump() + "\n");
    } else if (stream) {
      show(rest + "\n");
    } else {
      std::string head = fmt::format("=== prompt {}", job.prompt + 1);
      if (options.samples > 1) {
        head += fmt::format(", sample {}", job.sample + 1);
      }
      show(fmt::format(
          "{}\n{}{}\n", head, options.echo ? utf8_replace_invalid(prompt.text) : "",
          job.text ? job.text->text() : fmt::format("{}", fmt::join(passages[j].tokens, " "))));
    }
  }
  if (!options.save_state.empty()) {
    generate::save_context(options.save_state, passages[0].context, decoder);
  }
  report(generator.timing(), options.quiet);
}

}  // namespace

std::vector<int64_t> end_tokens(const GenerateSettings& settings, const model::Config& config,
                                const Tokenizer* tokenizer) {
  if (settings.ignore_eos) {
    return {};
  }
  std::vector<int64_t> ids = settings.end_tokens;
  for (int64_t id : ids) {
    MDN_CHECK(id >= 0 && id < config.vocab_size,
              "--eos {}: the model's vocabulary is {} (ids 0 to {})", id, config.vocab_size,
              config.vocab_size - 1);
  }
  if (ids.empty() && tokenizer && tokenizer->eos_id()) {
    ids.push_back(*tokenizer->eos_id());
  } else if (ids.empty() && config.eos_token_id && (!tokenizer || tokenizer->vocab_size() > 256)) {
    ids.push_back(*config.eos_token_id);
  }
  return ids;
}

std::vector<int64_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text,
                                bool beginning) {
  const auto ids = tokenizer.encode(text, {.add_special_tokens = beginning});
  std::vector<int64_t> out(ids.begin(), ids.end());
  if (out.empty() && beginning) {
    // A model needs something to begin with: the token that begins texts, else a newline.
    if (tokenizer.bos_id()) {
      out.push_back(*tokenizer.bos_id());
    } else {
      const auto newline = tokenizer.encode("\n");
      out.assign(newline.begin(), newline.end());
    }
  }
  return out;
}

void add_generate(CLI::App& program) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = program.add_subcommand(
      "generate",
      "Continue prompts with a model. The prompt is read in chunks; then every token costs the\n"
      "same time and memory, however long the text: what the model remembers is a state of fixed\n"
      "size, which can be saved and continued from.");
  GenerateOptions& o = *options;
  GenerateSettings& s = o.settings;
  command
      ->add_option("MODEL_DIR", o.folder,
                   "folder with config.json, weights and tokenizer.json; or a training run's "
                   "folder, of which the newest step-N is taken")
      ->required();
  command
      ->add_option("-p,--prompt", o.prompts,
                   "text to continue, may be repeated; an empty one is the tokenizer's "
                   "beginning-of-text token, or a newline where it has none")
      ->allow_extra_args(false)
      ->group("Input");
  command
      ->add_option("--prompt-file", o.prompt_file,
                   "one prompt a line; *.jsonl: {\"prompt\": TEXT} or {\"ids\": [..]}, with "
                   "\"max_tokens\" and \"seed\" as wanted; -: standard input")
      ->group("Input");
  command->add_option("--ids", o.ids, "token ids instead of text (\"1 2 3\"), may be repeated")
      ->allow_extra_args(false)
      ->group("Input");
  command->add_flag("--no-bos", o.no_bos, "add no beginning-of-text token")->group("Input");
  command->add_flag("-i,--interactive", o.interactive, "a conversation; /help there lists commands")
      ->group("Input");
  command->add_option("-n,--max-tokens", s.max_tokens, "tokens to make, at most")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("-t,--temperature", s.sampler.temperature,
                   "above 1: more surprising, below: less; 0: always the likeliest token")
      ->capture_default_str()
      ->group("Sampling");
  command->add_option("--top-k", s.sampler.top_k, "only the k likeliest tokens; 0: off")
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--top-p", s.sampler.top_p,
                   "only the likeliest tokens that together have probability p; 1: off")
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--min-p", s.sampler.min_p,
                   "only tokens with at least p times the likeliest one's probability; 0: off")
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--repetition-penalty", s.sampler.repetition_penalty,
                   "above 1: tokens that occurred become less likely")
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--seed", s.seed,
                   "of the random numbers (0; a loaded state goes on with its own)")
      ->check(CLI::Range(int64_t{0}, kLargestSeed))
      ->group("Sampling");
  command->add_option("--samples", o.samples, "continuations of each prompt")
      ->check(CLI::Range(int64_t{1}, kMostRows))
      ->capture_default_str()
      ->group("Sampling");
  command
      ->add_option("--stop", s.stop,
                   "end the passage before this text, may be repeated (a newline: $'\\n')")
      ->allow_extra_args(false)
      ->group("Sampling");
  command
      ->add_option("--eos", s.end_tokens,
                   "token id that ends a passage, may be repeated (default: the tokenizer's, else "
                   "the configuration's)")
      ->allow_extra_args(false)
      ->group("Sampling");
  command->add_flag("--ignore-eos", s.ignore_eos, "no token ends a passage")->group("Sampling");
  command
      ->add_option("--save-state", o.save_state, "write the state after the passage to this file")
      ->group("State");
  command
      ->add_option("--load-state", o.load_state,
                   "continue from this file; with prompts, each continues it")
      ->check(CLI::ExistingFile)
      ->group("State");
  command->add_flag("--json", o.json, "one JSON object a passage")->group("Output");
  command->add_flag("--echo", o.echo, "print the prompts too")->group("Output");
  command->add_flag("-q,--quiet", o.quiet, "no speed report")->group("Output");
  command->add_option("--batch", o.batch, "sequences decoded together")
      ->check(CLI::Range(int64_t{1}, kMostRows))
      ->capture_default_str();
  command->add_option("--threads", o.threads, "CPU threads; 0: all cores")
      ->check(CLI::Range(int64_t{0}, kMostThreads))
      ->capture_default_str();
  add_device_options(*command, o.device);
  command->footer(
      "Examples: mdn generate out/demo --prompt \"ROMEO:\" --max-tokens 300 --seed 7\n"
      "          mdn generate out/demo -p \"Once\" --save-state once.mdnstate\n"
      "          mdn generate out/demo --load-state once.mdnstate -n 100\n"
      "          mdn generate out/demo --ids \"72 105\" -n 8 --temperature 0 --json");
  command->callback([options] { run_generate(*options); });
}

}  // namespace mdn::app
