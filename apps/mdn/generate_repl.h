// mdn generate: what its one-shot and interactive forms share, and the interactive one.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mdn/generate/context.h"
#include "mdn/generate/sampler.h"
#include "mdn/model/decoder.h"
#include "mdn/tokenizer/tokenizer.h"

namespace mdn::app {

struct GenerateSettings {
  generate::SamplerOptions sampler{.temperature = 0.8};
  int64_t max_tokens = 256;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<int64_t> end_tokens;
  bool ignore_eos = false;
};

/// The tokens that end a passage: those asked for, else the tokenizer's, else the configuration's
/// (which byte tokenizers do not have: there every id is text).
std::vector<int64_t> end_tokens(const GenerateSettings& settings, const model::Config& config,
                                const Tokenizer* tokenizer);

/// Ids of a prompt. At the `beginning` of a text, with what the tokenizer puts before a text; an
/// empty beginning is its beginning-of-text token, else a newline.
std::vector<int64_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text,
                                bool beginning);

struct Repl {
  const model::Decoder& decoder;
  const Tokenizer& tokenizer;
  GenerateSettings settings;
  std::optional<generate::Context> context;  // what the conversation begins with
  std::atomic<bool>& interrupted;            // set by Ctrl-C
  bool bos = true;
};

/// Reads lines until /quit or the end of input; each is appended to the conversation and answered.
void run_repl(Repl repl);

}  // namespace mdn::app
