// JSON with errors that point: at file, line and column while parsing; at file, key, value and what
// is allowed while reading values.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mdn {

using Json = nlohmann::json;                 // keys sorted
using OrderedJson = nlohmann::ordered_json;  // keys as inserted: for files people read

/// Deepest nesting of arrays and objects that parse_json accepts.
inline constexpr int kMaxJsonDepth = 200;

/// Parses strictly: UTF-8, no comments, no trailing text. A key that stands twice in an object is
/// an error, since readers disagree on which one counts. `name` (a path) opens every message.
Json parse_json(std::string_view text, const std::string& name);

/// parse_json of a file's content.
Json read_json(const std::filesystem::path& path);

/// A value as messages show it: its JSON, shortened.
std::string brief_json(const Json& value);

/// A JSON object together with the place it came from. Getters throw errors that name the place,
/// the key, the value found and what is allowed. In the `_or` forms a missing key and a null value
/// (which Hugging Face writes for "not set") give the default. Holds a reference: the Json must
/// outlive it.
class JsonObject {
 public:
  /// `place` is how messages call it: a path, or a path and a key. Throws if it is no object.
  JsonObject(const Json& value, std::string place);
  JsonObject(Json&&, std::string) = delete;

  bool has(std::string_view key) const;  // present and not null
  const Json& json() const { return value_; }
  const std::string& place() const { return place_; }

  int64_t integer(std::string_view key, int64_t lowest = std::numeric_limits<int64_t>::min(),
                  int64_t highest = std::numeric_limits<int64_t>::max()) const;
  int64_t integer_or(std::string_view key, int64_t otherwise,
                     int64_t lowest = std::numeric_limits<int64_t>::min(),
                     int64_t highest = std::numeric_limits<int64_t>::max()) const;
  /// Any number, integers included; bounds are inclusive.
  double real(std::string_view key, double lowest = -std::numeric_limits<double>::infinity(),
              double highest = std::numeric_limits<double>::infinity()) const;
  double real_or(std::string_view key, double otherwise,
                 double lowest = -std::numeric_limits<double>::infinity(),
                 double highest = std::numeric_limits<double>::infinity()) const;
  bool boolean(std::string_view key) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  /// With a list, only its members are allowed.
  std::string string(std::string_view key,
                     std::initializer_list<std::string_view> allowed = {}) const;
  std::string string_or(std::string_view key, std::string_view otherwise,
                        std::initializer_list<std::string_view> allowed = {}) const;
  std::vector<int64_t> integers(std::string_view key,
                                int64_t lowest = std::numeric_limits<int64_t>::min(),
                                int64_t highest = std::numeric_limits<int64_t>::max()) const;
  std::vector<std::string> strings(std::string_view key) const;
  JsonObject object(std::string_view key) const;
  const Json& array(std::string_view key) const;

  /// Throws naming the first key that is in none of the lists' words.
  void check_keys(std::initializer_list<std::string_view> known) const;

  /// Throws "PLACE: KEY is VALUE; ALLOWED"; for checks that need more than a getter.
  [[noreturn]] void fail(std::string_view key, std::string_view allowed) const;

 private:
  const Json& at(std::string_view key, std::string_view allowed) const;

  const Json& value_;
  std::string place_;
};

}  // namespace mdn
