// mdn data: text to token shards.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <optional>

#include "apps/mdn/clock.h"
#include "apps/mdn/commands.h"
#include "mdn/core/error.h"
#include "mdn/data/dataset.h"
#include "mdn/data/prepare.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::app {
namespace {

struct DataOptions {
  std::vector<std::string> sources;
  std::string output;
  std::string check;
  std::string tokenizer = "bytes";
  std::string format = "auto";
  std::string split = "auto";
  std::string separator;
  bool no_bos = false;
  bool no_eos = false;
  data::PrepareOptions prepare;
};

/// Shells pass "\n" as two characters; a separator usually is line ends.
std::string unescape(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\') {
      out += text[i];
      continue;
    }
    const char next = i + 1 < text.size() ? text[i + 1] : '\0';
    switch (next) {
      case 'n':
        out += '\n';
        break;
      case 't':
        out += '\t';
        break;
      case 'r':
        out += '\r';
        break;
      case '\\':
        out += '\\';
        break;
      default:
        MDN_THROW("--separator {}: a backslash is followed by n, t, r or a backslash", text);
    }
    ++i;
  }
  return out;
}

/// One line that is drawn over itself, on a terminal only.
class PrepareBar {
 public:
  void show(const data::PrepareProgress& progress) {
    const double elapsed = seconds_since(start_);
    // The last call, with everything read, is always drawn.
    const bool last = progress.file_bytes >= progress.total_file_bytes;
    if (isatty(STDERR_FILENO) == 0 || (!last && seconds_since(drawn_) < 0.1)) {
      return;
    }
    drawn_ = Clock::now();
    const double part = progress.total_file_bytes > 0
                            ? std::min(1.0, static_cast<double>(progress.file_bytes) /
                                                static_cast<double>(progress.total_file_bytes))
                            : 0.0;
    constexpr int kWidth = 24;
    const auto full = static_cast<size_t>(part * kWidth);
    const double left = part > 0.0 ? elapsed * (1.0 - part) / part : 0.0;
    const double rate = static_cast<double>(progress.text_bytes) / 1e6 / std::max(elapsed, 1e-3);
    fmt::print(
        stderr,
        "\r[{:<{}}] {:3.0f}%  {:.1f} MB/s  {} documents  {:.1f} M tokens  {:.0f} s left \x1b[K",
        std::string(full, '#'), kWidth, 100.0 * part, rate, progress.documents,
        static_cast<double>(progress.tokens) / 1e6, left);
    shown_ = true;
  }
  void close() {
    if (shown_) {
      fmt::print(stderr, "\r\x1b[K");
    }
  }

 private:
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_;
  bool shown_ = false;
};

void print_split(const char* name, const data::SplitInfo& split) {
  int64_t file_bytes = 0;
  for (const data::ShardInfo& shard : split.shards) {
    file_bytes += shard.file_bytes;
  }
  fmt::print("  {:<6} {:>12} documents {:>15} tokens {:>15} bytes of text  {} shard{}, {:.1f} MB\n",
             name, split.documents(), split.tokens(), split.text_bytes(), split.shards.size(),
             split.shards.size() == 1 ? "" : "s", static_cast<double>(file_bytes) / 1e6);
}

void print_manifest(const std::string& folder, const data::Manifest& manifest) {
  fmt::print("{}: tokenizer {} ({} ids, hash {}...), split by {}\n", folder,
             manifest.tokenizer_name, manifest.vocab_size, manifest.tokenizer_hash.substr(0, 12),
             manifest.split_by);
  print_split("train", manifest.train);
  print_split("val", manifest.val);
  if (manifest.empty_documents > 0) {
    fmt::print("  {} empty documents were left out\n", manifest.empty_documents);
  }
}

void check(const std::string& folder) {
  const auto start = Clock::now();
  const data::TokenDataset dataset(folder, data::Verify::kFull);
  const auto tokenizer = load_tokenizer(folder);
  MDN_CHECK(tokenizer->hash() == dataset.manifest().tokenizer_hash,
            "{}: its tokenizer.json has the hash {}..., and the shards were made with {}...",
            folder, tokenizer->hash().substr(0, 12),
            dataset.manifest().tokenizer_hash.substr(0, 12));
  print_manifest(folder, dataset.manifest());
  fmt::print("every byte of every shard matches its checksum ({:.1f} s)\n", seconds_since(start));
}

void prepare(const DataOptions& options) {
  data::PrepareOptions prepared = options.prepare;
  prepared.sources.assign(options.sources.begin(), options.sources.end());
  prepared.output = options.output;
  prepared.documents.format = data::source_format_from_name(options.format);
  prepared.documents.separator = unescape(options.separator);
  prepared.split_by = data::split_by_from_name(options.split);
  prepared.bos = !options.no_bos;
  prepared.eos = !options.no_eos;
  std::unique_ptr<Tokenizer> tokenizer;
  if (options.tokenizer == "bytes") {
    tokenizer = std::make_unique<ByteTokenizer>();
  } else {
    tokenizer = load_tokenizer(options.tokenizer);
  }
  PrepareBar bar;
  prepared.progress = [&bar](const data::PrepareProgress& progress) { bar.show(progress); };
  const auto start = Clock::now();
  std::optional<data::Manifest> manifest;
  try {
    manifest = data::prepare(*tokenizer, options.tokenizer, prepared);
  } catch (...) {
    bar.close();
    throw;
  }
  bar.close();
  print_manifest(options.output, *manifest);
  const double seconds = seconds_since(start);
  const auto text = static_cast<double>(manifest->train.text_bytes() + manifest->val.text_bytes());
  fmt::print("done in {:.1f} s ({:.1f} MB/s)\n", seconds, text / 1e6 / std::max(seconds, 1e-3));
}

void run_data(const DataOptions& options) {
  if (!options.check.empty()) {
    MDN_CHECK(options.sources.empty() && options.output.empty(),
              "--check reads a folder that exists; it takes no sources and no --out");
    check(options.check);
    return;
  }
  MDN_CHECK(!options.sources.empty(), "name the files to read, or --check a data folder");
  MDN_CHECK(!options.output.empty(), "--out names the folder to write");
  prepare(options);
}

}  // namespace

void add_data(CLI::App& program) {
  auto options = std::make_shared<DataOptions>();
  data::PrepareOptions& prepare = options->prepare;
  CLI::App* command =
      program.add_subcommand("data",
                             "Turn text into the token shards that `mdn train` reads.\n"
                             "\n"
                             "A text file is one document, unless --separator divides it. A JSONL "
                             "file has one document a\n"
                             "line: the string of its --field. Either may be packed with gzip or "
                             "zstd, which is seen from\n"
                             "the content. The folder appears when it is complete; manifest.json "
                             "in it says what it holds.");
  command->add_option("SOURCE", options->sources, "text or JSONL files, also .gz and .zst");
  command->add_option("--out", options->output, "folder to write");
  command->add_flag("--replace", prepare.replace,
                    "put it in the place of a data folder of that name");
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "bytes, or a tokenizer.json (Hugging Face), or a folder with one")
      ->capture_default_str();
  command
      ->add_option(
          "--format", options->format,
          "text, jsonl, or auto: JSONL when the name ends so, or the first line is a JSON\n"
          "object")
      ->capture_default_str();
  command->add_option("--field", prepare.documents.field, "JSONL: the key that holds the text")
      ->capture_default_str();
  command->add_option(
      "--separator", options->separator,
      "text: what stands between documents, such as '<|endoftext|>' or '\\n\\n\\n'\n"
      "(\\n, \\t, \\r and \\\\ are understood); it is no part of them");
  command->add_option("--val-fraction", prepare.val_fraction, "held out for evaluation, in [0, 1)")
      ->capture_default_str();
  command
      ->add_option("--split", options->split,
                   "document: whole documents are held out, chosen by a hash of --seed and their\n"
                   "text; position: the last part of every document's bytes; auto: position when\n"
                   "there is one document, else document")
      ->capture_default_str();
  command->add_option("--seed", prepare.seed, "chooses the documents held out")
      ->capture_default_str();
  command
      ->add_option("--shard-tokens", prepare.shard_tokens,
                   "tokens after which another shard is begun")
      ->capture_default_str();
  command->add_flag("--no-bos", options->no_bos,
                    "do not put the tokenizer's bos before each document");
  command->add_flag("--no-eos", options->no_eos,
                    "do not put the tokenizer's eos after each document");
  command->add_option("--check", options->check,
                      "instead: check every byte of a data folder against its checksums");
  command->footer(
      "Examples:\n"
      "  mdn data corpus/shakespeare.txt --out out/shakespeare\n"
      "  mdn data web/*.jsonl.zst --tokenizer gpt2/tokenizer.json --val-fraction 0.005 --out "
      "out/web\n"
      "  mdn data --check out/shakespeare");
  command->callback([options] { run_data(*options); });
}

}  // namespace mdn::app
