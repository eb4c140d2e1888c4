// NAME:key=value,key=value: a task with its settings, as the command line gives it.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace mdn::evaluate {

class TaskSpec {
 public:
  /// A comma divides only before "key=", so that values (file names) may hold others. Throws on an
  /// empty name, a part without "=", an empty value and a key that stands twice.
  static TaskSpec parse(std::string_view text);

  const std::string& name() const { return name_; }
  /// NAME:key=value,... with the keys sorted.
  std::string text() const;

  bool has(const std::string& key) const { return values_.contains(key); }
  void set(const std::string& key, const std::string& value) { values_[key] = value; }
  void erase(const std::string& key) { values_.erase(key); }

  /// Throw naming task, key, value and what is allowed; `string` also when the key is missing.
  std::string string(const std::string& key) const;
  std::string string_or(const std::string& key, const std::string& otherwise) const;
  int64_t integer_or(const std::string& key, int64_t otherwise, int64_t lowest,
                     int64_t highest = std::numeric_limits<int64_t>::max()) const;
  double real_or(const std::string& key, double otherwise, double lowest, double highest) const;
  /// Throws unless every key is one of `known`.
  void check_keys(const std::vector<std::string>& known) const;

 private:
  std::string name_;
  std::map<std::string, std::string> values_;
};

}  // namespace mdn::evaluate
