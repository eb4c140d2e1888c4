#include "mdn/evaluate/task_spec.h"

#include <algorithm>
#include <charconv>

#include "mdn/core/error.h"

namespace mdn::evaluate {
namespace {

constexpr const char* kKeyLetters = "abcdefghijklmnopqrstuvwxyz0123456789_";

/// Where "key=" begins at or after `from`, directly behind a comma; npos if nowhere.
size_t next_key(std::string_view text, size_t from) {
  for (size_t comma = text.find(',', from); comma != std::string_view::npos;
       comma = text.find(',', comma + 1)) {
    const size_t end = text.find_first_not_of(kKeyLetters, comma + 1);
    if (end != std::string_view::npos && end > comma + 1 && text[end] == '=') {
      return comma + 1;
    }
  }
  return std::string_view::npos;
}

template <class Number>
bool parse_number(const std::string& text, Number& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

TaskSpec TaskSpec::parse(std::string_view text) {
  TaskSpec spec;
  const size_t colon = text.find(':');
  spec.name_ = text.substr(0, colon);
  MDN_CHECK(!spec.name_.empty(), "task '{}': a task is NAME or NAME:key=value,key=value", text);
  size_t at = colon == std::string_view::npos ? text.size() : colon + 1;
  while (at < text.size()) {
    const size_t next = next_key(text, at);
    const size_t end = next == std::string_view::npos ? text.size() : next - 1;
    const std::string_view part = text.substr(at, end - at);
    const size_t equals = part.find('=');
    MDN_CHECK(equals != std::string_view::npos && equals > 0 && equals + 1 < part.size(),
              "task '{}': '{}' should be key=value", text, part);
    const std::string key(part.substr(0, equals));
    MDN_CHECK(!spec.has(key), "task '{}': the key '{}' stands twice", text, key);
    spec.values_[key] = part.substr(equals + 1);
    at = next == std::string_view::npos ? text.size() : next;
  }
  return spec;
}

std::string TaskSpec::text() const {
  std::string text = name_;
  char mark = ':';
  for (const auto& [key, value] : values_) {
    text += fmt::format("{}{}={}", mark, key, value);
    mark = ',';
  }
  return text;
}

std::string TaskSpec::string(const std::string& key) const {
  const auto found = values_.find(key);
  MDN_CHECK(found != values_.end(), "{}: the key '{}' is missing: {}:{}=...", name_, key, name_,
            key);
  return found->second;
}

std::string TaskSpec::string_or(const std::string& key, const std::string& otherwise) const {
  const auto found = values_.find(key);
  return found == values_.end() ? otherwise : found->second;
}

int64_t TaskSpec::integer_or(const std::string& key, int64_t otherwise, int64_t lowest,
                             int64_t highest) const {
  if (!has(key)) {
    return otherwise;
  }
  int64_t value = 0;
  MDN_CHECK(parse_number(string(key), value) && value >= lowest && value <= highest,
            "{}: {} is '{}'; allowed: a whole number {}", name_, key, string(key),
            highest == std::numeric_limits<int64_t>::max()
                ? fmt::format("of at least {}", lowest)
                : fmt::format("from {} to {}", lowest, highest));
  return value;
}

double TaskSpec::real_or(const std::string& key, double otherwise, double lowest,
                         double highest) const {
  if (!has(key)) {
    return otherwise;
  }
  double value = 0;
  MDN_CHECK(parse_number(string(key), value) && value >= lowest && value <= highest,
            "{}: {} is '{}'; allowed: a number from {} to {}", name_, key, string(key), lowest,
            highest);
  return value;
}

void TaskSpec::check_keys(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : values_) {
    MDN_CHECK(std::find(known.begin(), known.end(), key) != known.end(),
              "{}: unknown key '{}'; its keys are {}", name_, key, fmt::join(known, ", "));
  }
}

}  // namespace mdn::evaluate
