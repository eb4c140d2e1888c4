// Reading the keys of a config.json, each at most once, none overlooked.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mdn/io/json.h"

namespace mdn::model {

/// Keys that Hugging Face writes into every config, or that choose speed and never the result.
const std::set<std::string>& ignored_keys();

inline constexpr int64_t kMaxSize = int64_t{1} << 31;  // of any one dimension

/// A JSON object that remembers which keys were read, and in the end names those that nobody read.
class Keys {
 public:
  Keys(const Json& object, const std::string& place) : object_(object, place) {}

  bool has(const std::string& key) { return see(key).has(key); }
  bool is_null(const std::string& key) {
    return see(key).json().contains(key) && !object_.has(key);
  }
  int64_t integer(const std::string& key, int64_t otherwise, int64_t lowest, int64_t highest) {
    return see(key).integer_or(key, otherwise, lowest, highest);
  }
  int64_t integer(const std::string& key, int64_t lowest, int64_t highest) {
    return see(key).integer(key, lowest, highest);
  }
  double number(const std::string& key, double otherwise, double lowest, double highest) {
    return see(key).real_or(key, otherwise, lowest, highest);
  }
  bool boolean(const std::string& key, bool otherwise) {
    return see(key).boolean_or(key, otherwise);
  }
  std::vector<int64_t> integers(const std::string& key, int64_t lowest, int64_t highest) {
    return see(key).integers(key, lowest, highest);
  }
  std::string string(const std::string& key, const std::string& otherwise,
                     std::initializer_list<std::string_view> allowed) {
    return see(key).string_or(key, otherwise, allowed);
  }
  /// An object, or each object of a list; none where the key is absent or null.
  std::vector<JsonObject> objects(const std::string& key);

  /// A token id: an integer, or, as some configs have it for eos, a list whose first entry counts.
  /// An id outside the vocabulary (configs of small ones keep the default ids) means "none".
  std::optional<int64_t> token(const std::string& key, int64_t vocab_size);

  /// Two numbers, the first not above the second. An infinite one stands as {"__float__":
  /// "Infinity"}.
  std::pair<double, double> range(const std::string& key, std::pair<double, double> otherwise);

  /// The name to read of a key that has two: both are accepted, and must agree if both are there.
  std::string either(const std::string& key, const std::string& alias);

  /// A feature that no published config uses and this program does not have.
  void only(const std::string& key, const Json& allowed);

  /// A key that may have any value and changes nothing.
  void accept(const std::string& key) { seen_.insert(key); }

  /// Throws if a key was neither read nor accepted: it might change the model.
  void finish() const;

  const std::string& place() const { return object_.place(); }

 private:
  const JsonObject& see(const std::string& key) {
    seen_.insert(key);
    return object_;
  }

  JsonObject object_;
  std::set<std::string> seen_;
};

}  // namespace mdn::model
