#include "apps/mdn/generate_repl.h"

#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>

#include "mdn/core/error.h"
#include "mdn/generate/generator.h"
#include "mdn/generate/passage_text.h"

namespace mdn::app {
namespace {

constexpr const char* kHelp =
    "A line is appended to the text, with its newline, and the model goes on from there.\n"
    "  /reset            forget everything\n"
    "  /more             go on without adding anything\n"
    "  /save FILE        write the state; /load FILE continues from one\n"
    "  /set NAME VALUE   temperature, top-k, top-p, min-p, repetition-penalty, max-tokens, seed\n"
    "  /show             the settings, and how many tokens were read\n"
    "  /quit             leave (or the end of input)\n"
    "  //text            a line that begins with a slash\n"
    "Ctrl-C ends the passage, not the program.\n";

double number(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  MDN_CHECK(!text.empty() && *end == '\0', "{} must be a number, not '{}'", name, text);
  return value;
}

int64_t integer(const std::string& name, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  MDN_CHECK(error == std::errc() && end == text.data() + text.size() && value >= 0,
            "{} must be an integer from 0, not '{}'", name, text);
  return value;
}

class Conversation {
 public:
  explicit Conversation(Repl repl) : r_(std::move(repl)), generator_(r_.decoder, {1, true}) {
    if (r_.context) {
      context_ = std::move(*r_.context);
      if (r_.settings.seed) {
        context_.random = {.seed = *r_.settings.seed};
      }
    } else {
      context_ = generate::new_context(r_.decoder, {.seed = r_.settings.seed.value_or(0)});
    }
  }

  void run() {
    const bool terminal = isatty(STDIN_FILENO) != 0;
    if (terminal) {
      std::fputs("/help lists the commands, /quit leaves.\n", stderr);
    }
    while (!quit_) {
      if (terminal) {
        std::fputs("> ", stdout);
        std::fflush(stdout);
      }
      const std::optional<std::string> line = read_line();
      if (!line) {
        return;
      }
      // A mistake in one line ends that line alone.
      try {
        obey(*line);
      } catch (const Error& error) {
        fmt::print(stderr, "mdn: {}\n", error.what());
      }
    }
  }

 private:
  // Empty: the end of input.
  std::optional<std::string> read_line() {
    char* buffer = nullptr;
    size_t capacity = 0;
    std::optional<std::string> line;
    while (true) {
      errno = 0;
      const ssize_t length = ::getline(&buffer, &capacity, stdin);
      if (length >= 0) {
        line.emplace(buffer, static_cast<size_t>(length));
        break;
      }
      if (errno != EINTR) {
        break;
      }
      clearerr(stdin);  // Ctrl-C at the prompt: nothing to stop
      std::fputs("\n(/quit leaves)\n> ", stdout);
      std::fflush(stdout);
    }
    std::free(buffer);
    if (line && line->ends_with('\n')) {
      line->pop_back();
    }
    return line;
  }

  void obey(const std::string& line) {
    if (!line.starts_with('/') || line.starts_with("//")) {
      say(line.starts_with("//") ? line.substr(1) : line);
      return;
    }
    const size_t space = std::min(line.find(' '), line.size());
    const std::string command = line.substr(0, space);
    const std::string rest = space < line.size() ? line.substr(space + 1) : "";
    if (command == "/quit" || command == "/exit") {
      quit_ = true;
    } else if (command == "/help") {
      std::fputs(kHelp, stdout);
    } else if (command == "/reset") {
      context_ = generate::new_context(r_.decoder, context_.random);
    } else if (command == "/more") {
      MDN_CHECK(!context_.empty(), "there is no text yet");
      answer({});
    } else if (command == "/save") {
      MDN_CHECK(!rest.empty(), "/save needs a file name");
      generate::save_context(rest, context_, r_.decoder);
    } else if (command == "/load") {
      MDN_CHECK(!rest.empty(), "/load needs a file name");
      context_ = generate::load_context(rest, r_.decoder);
    } else if (command == "/set") {
      const size_t at = std::min(rest.find(' '), rest.size());
      set(rest.substr(0, at), at < rest.size() ? rest.substr(at + 1) : "");
    } else if (command == "/show") {
      show();
    } else {
      MDN_THROW("there is no command {}; /help lists them", command);
    }
  }

  void set(const std::string& name, const std::string& value) {
    GenerateSettings next = r_.settings;
    std::optional<generate::RandomStream> random;
    if (name == "temperature") {
      next.sampler.temperature = number(name, value);
    } else if (name == "top-k") {
      next.sampler.top_k = integer(name, value);
    } else if (name == "top-p") {
      next.sampler.top_p = number(name, value);
    } else if (name == "min-p") {
      next.sampler.min_p = number(name, value);
    } else if (name == "repetition-penalty") {
      next.sampler.repetition_penalty = number(name, value);
    } else if (name == "max-tokens") {
      next.max_tokens = integer(name, value);
    } else if (name == "seed") {
      random = {.seed = static_cast<uint64_t>(integer(name, value))};
    } else {
      MDN_THROW("there is no setting '{}'; /help lists them", name);
    }
    generate::check(next.sampler);
    r_.settings = next;
    if (random) {
      context_.random = *random;
    }
  }

  void show() const {
    const auto& s = r_.settings.sampler;
    fmt::print(
        "temperature {}, top-k {}, top-p {}, min-p {}, repetition-penalty {}, max-tokens {}, seed "
        "{} ({} numbers drawn)\n{} tokens read\n",
        s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, r_.settings.max_tokens,
        context_.random.seed, context_.random.drawn,
        context_.empty() ? 0 : context_.state.position + 1);
    std::fflush(stdout);
  }

  void say(const std::string& line) {
    answer(prompt_ids(r_.tokenizer, line + "\n", context_.empty() && r_.bos));
  }

  // Appends the ids, then makes a passage.
  void answer(std::vector<int64_t> ids) {
    generate::Request request;
    request.prompt = std::move(ids);
    request.start = &context_;
    request.sampler = r_.settings.sampler;
    request.max_tokens = r_.settings.max_tokens;
    request.end_tokens = r_.settings.end_tokens;
    generate::PassageText text(r_.tokenizer, r_.settings.stop);
    const auto print = [](const std::string& piece) {
      std::fwrite(piece.data(), 1, piece.size(), stdout);
      std::fflush(stdout);
    };
    r_.interrupted = false;
    auto passages = generator_.run(
        {request},
        [&](size_t, int64_t id) {
          print(text.push(static_cast<int32_t>(id)));
          return !text.stopped();
        },
        &r_.interrupted);
    print(text.finish() + "\n");
    context_ = std::move(passages.front().context);
  }

  Repl r_;
  generate::Generator generator_;
  generate::Context context_;
  bool quit_ = false;
};

}  // namespace

void run_repl(Repl repl) {
  Conversation(std::move(repl)).run();
}

}  // namespace mdn::app
