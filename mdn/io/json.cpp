#include "mdn/io/json.h"

#include <algorithm>
#include <unordered_set>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn {
namespace {

struct Position {
  size_t line = 1;
  size_t column = 1;  // in bytes
};

Position position_of(std::string_view text, size_t offset) {
  Position position;
  for (const char c : text.substr(0, std::min(offset, text.size()))) {
    if (c == '\n') {
      ++position.line;
      position.column = 1;
    } else {
      ++position.column;
    }
  }
  return position;
}

/// Where the key `name` of the text is written a second time cannot be asked of the parser, so the
/// message names the key alone.
struct DuplicateKey {
  std::string key;
};
struct TooDeep {};

/// The parser's words without its prefix, which repeats the position.
std::string reason_of(const std::string& what) {
  const size_t colon = what.find("column ");
  const size_t start = colon == std::string::npos ? std::string::npos : what.find(": ", colon);
  std::string reason = start == std::string::npos ? what : what.substr(start + 2);
  if (reason.find("ill-formed UTF-8") != std::string::npos) {
    reason.resize(reason.find(';'));  // what was read last is no text to show
  }
  return reason;
}

bool in_range(const Json& value, int64_t lowest, int64_t highest) {
  if (!value.is_number_integer()) {
    return false;
  }
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return false;
  }
  const int64_t number = value.get<int64_t>();
  return number >= lowest && number <= highest;
}

std::string describe_integers(int64_t lowest, int64_t highest) {
  const bool from = lowest != std::numeric_limits<int64_t>::min();
  const bool to = highest != std::numeric_limits<int64_t>::max();
  if (from && to) {
    return fmt::format("an integer in [{}, {}]", lowest, highest);
  }
  if (from) {
    return fmt::format("an integer >= {}", lowest);
  }
  return to ? fmt::format("an integer <= {}", highest) : "an integer";
}

std::string describe_words(std::initializer_list<std::string_view> allowed) {
  if (allowed.size() == 0) {
    return "a string";
  }
  std::string words = allowed.size() == 1 ? "" : "one of ";
  for (const std::string_view word : allowed) {
    words += fmt::format("{}\"{}\"", word.data() == allowed.begin()->data() ? "" : ", ", word);
  }
  return words;
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name) {
  std::vector<std::unordered_set<std::string>> seen;  // keys of each open object
  const auto on_event = [&seen](int depth, Json::parse_event_t event, Json& value) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (depth >= kMaxJsonDepth) {
          throw TooDeep{};
        }
        if (event == Json::parse_event_t::object_start) {
          seen.emplace_back();
        }
        break;
      case Json::parse_event_t::object_end:
        seen.pop_back();
        break;
      case Json::parse_event_t::key:
        if (!seen.back().insert(value.get_ref<const std::string&>()).second) {
          throw DuplicateKey{value.get<std::string>()};
        }
        break;
      default:
        break;
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), on_event);
  } catch (const Json::parse_error& error) {
    const Position at = position_of(text, error.byte > 0 ? error.byte - 1 : 0);
    MDN_THROW("{}:{}:{}: not valid JSON: {}", name, at.line, at.column, reason_of(error.what()));
  } catch (const Json::exception& error) {  // a number beyond double's range
    MDN_THROW("{}: not valid JSON: {}", name, reason_of(error.what()));
  } catch (const DuplicateKey& duplicate) {
    MDN_THROW("{}: key {} stands twice in one object; once is allowed", name,
              brief_json(duplicate.key));
  } catch (const TooDeep&) {
    MDN_THROW("{}: nested deeper than {} levels", name, kMaxJsonDepth);
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_file(path), path.string());
}

std::string brief_json(const Json& value) {
  constexpr size_t kLongest = 80;
  std::string text;
  if (value.is_object() || value.is_array()) {
    text =
        fmt::format("{} of {} entries", value.is_object() ? "an object" : "an array", value.size());
  } else {
    text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  }
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

JsonObject::JsonObject(const Json& value, std::string place)
    : value_(value), place_(std::move(place)) {
  MDN_CHECK(value_.is_object(), "{}: is {}; a JSON object is needed", place_, brief_json(value_));
}

bool JsonObject::has(std::string_view key) const {
  const auto found = value_.find(key);
  return found != value_.end() && !found->is_null();
}

void JsonObject::fail(std::string_view key, std::string_view allowed) const {
  const auto found = value_.find(key);
  if (found == value_.end()) {
    MDN_THROW("{}: key \"{}\" is missing; it must be {}", place_, key, allowed);
  }
  MDN_THROW("{}: \"{}\" is {}; it must be {}", place_, key, brief_json(*found), allowed);
}

const Json& JsonObject::at(std::string_view key, std::string_view allowed) const {
  const auto found = value_.find(key);
  if (found == value_.end()) {
    fail(key, allowed);
  }
  return *found;
}

int64_t JsonObject::integer(std::string_view key, int64_t lowest, int64_t highest) const {
  const std::string allowed = describe_integers(lowest, highest);
  const Json& value = at(key, allowed);
  if (!in_range(value, lowest, highest)) {
    fail(key, allowed);
  }
  return value.get<int64_t>();
}

int64_t JsonObject::integer_or(std::string_view key, int64_t otherwise, int64_t lowest,
                               int64_t highest) const {
  return has(key) ? integer(key, lowest, highest) : otherwise;
}

double JsonObject::real(std::string_view key, double lowest, double highest) const {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::string allowed = lowest == -infinity && highest == infinity
                                  ? "a number"
                                  : fmt::format("a number in [{}, {}]", lowest, highest);
  const Json& value = at(key, allowed);
  if (!value.is_number() || !(value.get<double>() >= lowest && value.get<double>() <= highest)) {
    fail(key, allowed);
  }
  return value.get<double>();
}

double JsonObject::real_or(std::string_view key, double otherwise, double lowest,
                           double highest) const {
  return has(key) ? real(key, lowest, highest) : otherwise;
}

bool JsonObject::boolean(std::string_view key) const {
  const Json& value = at(key, "true or false");
  if (!value.is_boolean()) {
    fail(key, "true or false");
  }
  return value.get<bool>();
}

bool JsonObject::boolean_or(std::string_view key, bool otherwise) const {
  return has(key) ? boolean(key) : otherwise;
}

std::string JsonObject::string(std::string_view key,
                               std::initializer_list<std::string_view> allowed) const {
  const Json& value = at(key, describe_words(allowed));
  if (!value.is_string() ||
      (allowed.size() > 0 && std::find(allowed.begin(), allowed.end(),
                                       value.get_ref<const std::string&>()) == allowed.end())) {
    fail(key, describe_words(allowed));
  }
  return value.get<std::string>();
}

std::string JsonObject::string_or(std::string_view key, std::string_view otherwise,
                                  std::initializer_list<std::string_view> allowed) const {
  return has(key) ? string(key, allowed) : std::string(otherwise);
}

std::vector<int64_t> JsonObject::integers(std::string_view key, int64_t lowest,
                                          int64_t highest) const {
  std::vector<int64_t> numbers;
  for (const Json& value : array(key)) {
    MDN_CHECK(in_range(value, lowest, highest), "{}: \"{}\" holds {}; each entry must be {}",
              place_, key, brief_json(value), describe_integers(lowest, highest));
    numbers.push_back(value.get<int64_t>());
  }
  return numbers;
}

std::vector<std::string> JsonObject::strings(std::string_view key) const {
  std::vector<std::string> words;
  for (const Json& value : array(key)) {
    MDN_CHECK(value.is_string(), "{}: \"{}\" holds {}; each entry must be a string", place_, key,
              brief_json(value));
    words.push_back(value.get<std::string>());
  }
  return words;
}

JsonObject JsonObject::object(std::string_view key) const {
  const Json& value = at(key, "an object");
  if (!value.is_object()) {
    fail(key, "an object");
  }
  return {value, fmt::format("{}: {}", place_, key)};
}

const Json& JsonObject::array(std::string_view key) const {
  const Json& value = at(key, "an array");
  if (!value.is_array()) {
    fail(key, "an array");
  }
  return value;
}

void JsonObject::check_keys(std::initializer_list<std::string_view> known) const {
  for (const auto& [key, value] : value_.items()) {
    if (std::find(known.begin(), known.end(), key) == known.end()) {
      std::string words;
      for (const std::string_view word : known) {
        words += (words.empty() ? "" : ", ") + std::string(word);
      }
      MDN_THROW("{}: unknown key {} (value {}); known are: {}", place_, brief_json(key),
                brief_json(value), words);
    }
  }
}

}  // namespace mdn
