// mdn inspect: what a model's gates do with a text.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "apps/mdn/commands.h"
#include "apps/mdn/device.h"
#include "mdn/core/error.h"
#include "mdn/generate/prompts.h"
#include "mdn/inspect/gates.h"
#include "mdn/io/file.h"
#include "mdn/io/hash.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::app {
namespace {

namespace fs = std::filesystem;

// More than the tokens of ordinary text have, so that a prefix is enough to read.
constexpr int64_t kBytesAToken = 64;

struct InspectOptions {
  std::string model;
  std::string text = MDN_CORPUS "/shakespeare.txt";
  std::string tokenizer;
  int64_t tokens = 4096;
  std::vector<std::string> out;
  bool json = false;
  DeviceOptions device;
};

using Form = std::string (*)(const inspect::Report&);

std::string as_json(const inspect::Report& report) {
  return inspect::report_json(report).dump(1) + "\n";
}

Form form_of(const std::string& path) {
  const std::string ending = fs::path(path).extension().string();
  const std::pair<const char*, Form> forms[] = {
      {".html", inspect::report_html}, {".svg", inspect::report_plane_svg}, {".json", as_json}};
  for (const auto& [name, form] : forms) {
    if (ending == name) {
      return form;
    }
  }
  MDN_THROW("--out {}: the ending says what to write: .html, .svg (the complex plane) or .json",
            path);
}

struct Text {
  std::vector<int32_t> ids;
  std::string sha256;
};

Text read_text(const InspectOptions& options, const model::Config& config) {
  const fs::path place = options.tokenizer.empty() ? options.model : options.tokenizer;
  MDN_CHECK(!options.tokenizer.empty() || fs::exists(place / kTokenizerFile),
            "{} has no {}: give the one the model was trained with by --tokenizer", place.string(),
            kTokenizerFile);
  const auto tokenizer = load_tokenizer(place);
  MDN_CHECK(tokenizer->vocab_size() <= config.vocab_size,
            "{}: the tokenizer has {} tokens but the model's vocabulary is {}: the tokenizer of "
            "another model",
            place.string(), tokenizer->vocab_size(), config.vocab_size);
  const MappedFile file(options.text);
  const auto most = static_cast<size_t>(options.tokens * kBytesAToken);
  const std::string_view text = as_text(file.bytes().first(std::min(file.size(), most)));
  Text out{.ids = tokenizer->encode(text, {.ignore_special_tokens_in_text = true}),
           .sha256 = sha256_hex(text)};
  out.ids.resize(std::min(out.ids.size(), static_cast<size_t>(options.tokens)));
  MDN_CHECK(out.ids.size() >= 2, "{}: the text has {} tokens; at least 2 are needed", options.text,
            out.ids.size());
  return out;
}

void run_inspect(InspectOptions options) {
  std::vector<Form> forms;
  for (const std::string& path : options.out) {
    forms.push_back(form_of(path));
  }
  options.model = generate::find_model(options.model).string();
  const model::Decoder decoder =
      model::load_decoder(options.model, options.device.type(), options.device.device());
  const Text text = read_text(options, decoder.config());
  const inspect::Reading reading = inspect::read_gates(decoder, text.ids);
  const inspect::Report report =
      inspect::make_report({.model = options.model,
                            .model_type = decoder.config().model_type,
                            .text = fs::path(options.text).filename().string(),
                            .sha256 = text.sha256,
                            .tokens = static_cast<int64_t>(text.ids.size()),
                            .loss = reading.loss,
                            .device = options.device.name,
                            .dtype = options.device.dtype},
                           reading.layers);
  for (size_t i = 0; i < forms.size(); ++i) {
    write_file_atomically(options.out[i], forms[i](report));
  }
  fmt::print("{}", options.json ? as_json(report) : inspect::report_table(report));
  if (!options.json) {
    for (const std::string& path : options.out) {
      fmt::print("wrote {}\n", path);
    }
  }
}

}  // namespace

void add_inspect(CLI::App& program) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = program.add_subcommand(
      "inspect",
      "What each layer's and head's gates do on real text: distributions of alpha, mu, beta and\n"
      "eta, half-lives of the memory, and the eigenvalues of its second-order system in the\n"
      "complex plane. docs/inspect.md says how each is defined.");
  command
      ->add_option("MODEL", options->model,
                   "a model's folder (config.json, model.safetensors), or a run's: its newest "
                   "checkpoint")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--text", options->text, "the text to read; default: corpus/shakespeare.txt")
      ->check(CLI::ExistingFile);
  command->add_option("--tokens", options->tokens, "how many of its first tokens, as one sequence")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer,
                      "tokenizer.json, or its folder; default: the model's");
  command
      ->add_option("--out", options->out,
                   "write FILE.html (one page with everything), FILE.svg (the complex plane) or\n"
                   "FILE.json (all numbers); may be given more than once")
      ->allow_extra_args(false);
  command->add_flag("--json", options->json, "print the JSON instead of the table");
  add_device_options(*command, options->device);
  command->footer(
      "Examples: mdn inspect out/demo\n"
      "          mdn inspect MODEL --text book.txt --tokens 8192 --out gates.html\n"
      "          mdn inspect MODEL --out plane.svg --out numbers.json\n"
      "          mdn inspect MODEL --json | python3 -m json.tool | less");
  command->callback([options] { run_inspect(*options); });
}

}  // namespace mdn::app
