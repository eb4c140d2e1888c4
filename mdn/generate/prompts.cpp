#include "mdn/generate/prompts.h"

#include <charconv>
#include <iostream>
#include <iterator>

#include "mdn/core/error.h"
#include "mdn/io/file.h"
#include "mdn/io/json.h"

namespace mdn::generate {
namespace {

Prompt parse_line(std::string_view line, const std::string& place) {
  const Json json = parse_json(line, place);
  const JsonObject object(json, place);
  object.check_keys({"prompt", "ids", "max_tokens", "seed"});
  Prompt prompt;
  MDN_CHECK(object.has("prompt") != object.has("ids"),
            "{}: give either \"prompt\" (text) or \"ids\" (token ids)", place);
  if (object.has("prompt")) {
    prompt.text = object.string("prompt");
  } else {
    prompt.ids = object.integers("ids", 0);
  }
  if (object.has("max_tokens")) {
    prompt.max_tokens = object.integer("max_tokens", 0);
  }
  if (object.has("seed")) {
    prompt.seed = static_cast<uint64_t>(object.integer("seed", 0));
  }
  return prompt;
}

}  // namespace

std::vector<Prompt> parse_prompts(std::string_view content, bool jsonl, const std::string& name) {
  while (content.ends_with('\n') || content.ends_with('\r')) {
    content.remove_suffix(1);
  }
  MDN_CHECK(!content.empty(), "{}: there is no prompt in it", name);
  std::vector<Prompt> prompts;
  size_t number = 0;
  while (!content.empty()) {
    ++number;
    const size_t end = std::min(content.find('\n'), content.size());
    std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.ends_with('\r')) {
      line.remove_suffix(1);
    }
    const std::string place = fmt::format("{}, line {}", name, number);
    MDN_CHECK(!line.empty(), "{}: the line is empty; every line must be a prompt", place);
    prompts.push_back(jsonl ? parse_line(line, place)
                            : Prompt{std::string(line), std::nullopt, std::nullopt, std::nullopt});
  }
  return prompts;
}

std::vector<Prompt> read_prompts(const std::string& path) {
  if (path == "-") {
    const std::string content{std::istreambuf_iterator<char>(std::cin), {}};
    return parse_prompts(content, false, "standard input");
  }
  return parse_prompts(read_file(path), path.ends_with(".jsonl"), path);
}

std::vector<int64_t> parse_ids(std::string_view text) {
  std::vector<int64_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    while (at != end && (*at == ' ' || *at == ',')) {
      ++at;
    }
    if (at == end) {
      return ids;
    }
    int64_t id = 0;
    const auto [rest, error] = std::from_chars(at, end, id);
    MDN_CHECK(error == std::errc() && (rest == end || *rest == ' ' || *rest == ','),
              "token ids '{}' must be integers separated by spaces or commas", text);
    ids.push_back(id);
    at = rest;
  }
}

std::filesystem::path find_model(const std::filesystem::path& folder) {
  namespace fs = std::filesystem;
  MDN_CHECK(fs::is_directory(folder), "{}: there is no such folder", folder.string());
  if (fs::exists(folder / "config.json")) {
    return folder;
  }
  fs::path newest;
  int64_t largest = -1;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    constexpr std::string_view kPrefix = "step-";
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kPrefix) || !fs::exists(entry.path() / "config.json")) {
      continue;
    }
    int64_t step = 0;
    const char* const end = name.data() + name.size();
    const auto [rest, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
    if (error == std::errc() && rest == end && step > largest) {
      largest = step;
      newest = entry.path();
    }
  }
  MDN_CHECK(largest >= 0,
            "{}: no model here: neither a config.json nor a training run's step-N folders",
            folder.string());
  return newest;
}

}  // namespace mdn::generate
