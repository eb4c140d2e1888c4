// Prompts from the command line and from files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mdn::generate {

/// Text or token ids, and what a JSONL line may set for itself.
struct Prompt {
  std::string text;
  std::optional<std::vector<int64_t>> ids;  // instead of text
  std::optional<int64_t> max_tokens;
  std::optional<uint64_t> seed;
};

/// One prompt a line. In a file whose name ends in .jsonl every line is a JSON object
///   {"prompt": "text"} or {"ids": [1, 2]}, and optionally "max_tokens" and "seed";
/// in any other every line is a prompt's text (without its newline; a carriage return before it
/// goes too). Empty lines at the end are ignored, elsewhere they are errors, which name file and
/// line, as are unknown keys. "-" reads standard input, as text.
std::vector<Prompt> read_prompts(const std::string& path);

/// read_prompts of a content; `name` stands for the file in errors.
std::vector<Prompt> parse_prompts(std::string_view content, bool jsonl, const std::string& name);

/// "1 2 3" or "1,2,3" -> ids.
std::vector<int64_t> parse_ids(std::string_view text);

/// The model folder meant by a path: the folder itself where it has a config.json, else the
/// step-N folder in it with the largest N that has one (a training run's newest checkpoint).
std::filesystem::path find_model(const std::filesystem::path& folder);

}  // namespace mdn::generate
