#include "mdn/tokenizer/regex_translation.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

// Far above what published patterns need.
constexpr size_t kLongestPattern = size_t{1} << 16;
constexpr size_t kDeepestGroup = 100;

struct Addition {
  char32_t first;
  char32_t last;
  std::string_view property;
};
constexpr Addition kAdditions[] = {
#include "mdn/tokenizer/unicode_additions.inc"
};

constexpr std::string_view kCategories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc",
                                            "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
                                            "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So",
                                            "Z",  "Zs", "Zl", "Zp", "Cc", "Cf", "Co"};
constexpr std::pair<std::string_view, std::string_view> kLongNames[] = {
    {"letter", "L"},      {"uppercaseletter", "Lu"}, {"lowercaseletter", "Ll"},
    {"mark", "M"},        {"number", "N"},           {"decimalnumber", "Nd"},
    {"punctuation", "P"}, {"symbol", "S"},           {"separator", "Z"}};
constexpr std::string_view kScripts[] = {"Han",      "Hiragana", "Katakana", "Hangul",
                                         "Bopomofo", "Latin",    "Cyrillic", "Greek",
                                         "Arabic",   "Hebrew",   "Thai",     "Devanagari"};

// Class contents.
constexpr const char* kSpace =
    "\\x09-\\x0D\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";
constexpr const char* kHexDigit = "0-9A-Fa-f";

std::string additions_of(std::string_view property) {
  std::string text;
  for (const Addition& addition : kAdditions) {
    const bool belongs = property.size() == 1 ? addition.property.size() == 2 &&
                                                    addition.property.front() == property.front()
                                              : addition.property == property;
    if (belongs) {
      text += addition.first == addition.last
                  ? fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(addition.first))
                  : fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", static_cast<uint32_t>(addition.first),
                                static_cast<uint32_t>(addition.last));
    }
  }
  return text;
}

std::string category_class(std::string_view category) {
  return fmt::format("\\p{{{}}}", category) + additions_of(category);
}

/// Oniguruma's word characters: Alphabetic, marks, decimal digits and connectors; and, as a relic
/// of Latin-1, the superscripts and fractions of that block.
std::string word_class() {
  return category_class("L") + category_class("M") + category_class("Nd") + category_class("Nl") +
         category_class("Pc") +
         "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"
         "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";
}

/// A set of characters as the contents of a class, or their complement.
struct Set {
  std::string contents;
  bool negated = false;
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& place)
      : pattern_(pattern), place_(place) {}

  std::string run() {
    MDN_CHECK(pattern_.size() <= kLongestPattern,
              "{}: a pattern of {} bytes; at most {} is allowed", place_, pattern_.size(),
              kLongestPattern);
    MDN_CHECK(utf8_runs(pattern_).empty() ||
                  (utf8_runs(pattern_).size() == 1 && utf8_runs(pattern_).front().valid),
              "{}: the pattern is not UTF-8", place_);
    while (!done()) {
      element();
    }
    MDN_CHECK(groups_.empty(), "{}: a group is not closed in the pattern", place_);
    return std::move(out_);
  }

 private:
  bool done() const { return at_ >= pattern_.size(); }
  bool looking_at(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }
  char take() {
    if (done()) {
      unsupported("an unfinished escape or class");
    }
    return pattern_[at_++];
  }
  [[noreturn]] void unsupported(std::string_view what) const {
    MDN_THROW("{}: {} near byte {} of the pattern \"{}\" is not supported", place_, what,
              std::min(at_, pattern_.size()),
              pattern_.size() <= 200 ? pattern_ : pattern_.substr(0, 200));
  }

  /// Output of what a quantifier would repeat.
  void atom(const std::string& text) {
    atom_begin_ = out_.size();
    out_ += text;
    has_atom_ = true;
  }
  void atom(const Set& set) { atom(fmt::format("[{}{}]", set.negated ? "^" : "", set.contents)); }
  /// Output of what cannot be repeated.
  void assertion(std::string_view text) {
    out_ += text;
    has_atom_ = false;
  }

  void element() {
    const char c = pattern_[at_];
    switch (c) {
      case '\\':
        escape();
        return;
      case '[':
        char_class();
        return;
      case '(':
        open_group();
        return;
      case ')':
        MDN_CHECK(!groups_.empty(), "{}: a ')' without its '(' in the pattern", place_);
        ++at_;
        out_ += ')';
        atom_begin_ = groups_.back();
        has_atom_ = true;
        groups_.pop_back();
        return;
      case '|':
        ++at_;
        assertion("|");
        return;
      case '^':
        ++at_;
        assertion("(?m:^)");
        return;
      case '$':
        ++at_;
        assertion("(?m:$)");
        return;
      case '.':
        ++at_;
        atom(std::string("[^\\n]"));
        return;
      case '*':
      case '+':
      case '?':
        quantifier(std::string(1, take()), /*simple=*/true);
        return;
      case '{': {
        const std::string interval = take_interval();
        if (interval.empty()) {
          ++at_;
          atom(std::string("\\{"));
        } else {
          quantifier(interval, /*simple=*/false);
        }
        return;
      }
      default:
        literal();
    }
  }

  void literal() {
    const size_t length = utf8_length(pattern_.substr(at_));
    atom(escape_regex(pattern_.substr(at_, length)));
    at_ += length;
  }

  void quantifier(const std::string& text, bool simple) {
    if (!has_atom_) {
      unsupported("a quantifier with nothing to repeat");
    }
    out_ += text;
    if (!done() && pattern_[at_] == '?') {
      // "{n}?" means "optionally n times" there and "n times, lazily" here.
      if (!simple && text.find(',') == std::string::npos) {
        unsupported("{n}?");
      }
      ++at_;
      out_ += '?';
    } else if (!done() && pattern_[at_] == '+') {
      ++at_;
      if (simple) {
        out_ += '+';  // possessive in both
      } else {
        out_.insert(atom_begin_, "(?:");
        out_ += ")+";
      }
    }
    // Any further quantifier repeats the repetition.
    if (!done() && (pattern_[at_] == '*' || pattern_[at_] == '+' || pattern_[at_] == '?')) {
      out_.insert(atom_begin_, "(?:");
      out_ += ')';
    }
  }

  /// "{n}", "{n,}", "{n,m}" or "{,m}" in PCRE2's form, consumed; or empty: a literal brace.
  std::string take_interval() {
    size_t i = at_ + 1;
    const auto number = [&] {
      std::string digits;
      while (i < pattern_.size() && std::isdigit(static_cast<unsigned char>(pattern_[i]))) {
        digits += pattern_[i++];
      }
      return digits;
    };
    const std::string low = number();
    std::string high = low;
    bool comma = false;
    if (i < pattern_.size() && pattern_[i] == ',') {
      comma = true;
      ++i;
      high = number();
    }
    if (i >= pattern_.size() || pattern_[i] != '}' || (low.empty() && high.empty())) {
      return "";
    }
    at_ = i + 1;
    return comma ? fmt::format("{{{},{}}}", low.empty() ? "0" : low, high)
                 : fmt::format("{{{}}}", low);
  }

  void open_group() {
    if (groups_.size() >= kDeepestGroup) {
      unsupported("groups nested this deep");
    }
    const size_t begin = out_.size();
    std::string opening;
    for (const std::string_view known :
         {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (looking_at(known)) {
        opening = known;
        break;
      }
    }
    if (opening.empty() && looking_at("(?i)")) {
      // Holds to the end of the enclosing group in both, but there it also fences alternatives:
      // a(?i)b|c is a(?i:b|c). Published patterns have it first, where that is the same.
      if (at_ != 0) {
        unsupported("(?i) that is not at the start");
      }
      at_ += 4;
      assertion("(?i)");
      return;
    }
    if (opening.empty() && looking_at("(?")) {
      unsupported("this kind of group");
    }
    if (opening.empty()) {
      opening = "(";
      if (looking_at("(*")) {
        unsupported("(*");
      }
    }
    at_ += opening.size();
    // Captures are not used, and back-references are refused.
    out_ += opening == "(" ? "(?:" : opening;
    groups_.push_back(begin);
    has_atom_ = false;
  }

  /// The set of \s, \d, \w, \h, \p{...} and their complements, after the backslash; false if the
  /// escape is none of them.
  bool take_set(char c, Set& set) {
    switch (c) {
      case 's':
      case 'S':
        set = {kSpace, c == 'S'};
        return true;
      case 'd':
      case 'D':
        set = {category_class("Nd"), c == 'D'};
        return true;
      case 'w':
      case 'W':
        set = {word_class(), c == 'W'};
        return true;
      case 'h':
      case 'H':
        set = {kHexDigit, c == 'H'};
        return true;
      case 'p':
      case 'P':
        set = take_property(c == 'P');
        return true;
      default:
        return false;
    }
  }

  Set take_property(bool negated) {
    if (done() || pattern_[at_] != '{') {
      unsupported("\\p without braces");
    }
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) {
      unsupported("\\p{ without its brace");
    }
    std::string_view given = pattern_.substr(at_ + 1, close - at_ - 1);
    if (!given.empty() && given.front() == '^') {
      negated = !negated;
      given.remove_prefix(1);
    }
    std::string name;  // compared without case, spaces, hyphens and underscores
    for (const char c : given) {
      if (c != ' ' && c != '-' && c != '_') {
        name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
      }
    }
    const auto same = [&name](std::string_view known) {
      return std::equal(known.begin(), known.end(), name.begin(), name.end(), [](char a, char b) {
        return std::tolower(static_cast<unsigned char>(a)) == b;
      });
    };
    for (const auto& [long_name, category] : kLongNames) {
      if (name == long_name) {
        at_ = close + 1;
        return {category_class(category), negated};
      }
    }
    for (const std::string_view category : kCategories) {
      if (same(category)) {
        at_ = close + 1;
        return {category_class(category), negated};
      }
    }
    for (const std::string_view script : kScripts) {
      if (same(script)) {
        at_ = close + 1;
        return {fmt::format("\\p{{sc:{}}}", script) + additions_of(script), negated};
      }
    }
    MDN_THROW(
        "{}: the property \\p{{{}}} is not supported; supported are the general categories "
        "{} and the scripts {}",
        place_, given, fmt::join(kCategories, " "), fmt::join(kScripts, " "));
  }

  /// One character of an escape, after the backslash.
  char32_t take_escaped_character(char c) {
    switch (c) {
      case 't':
        return '\t';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 'f':
        return '\f';
      case 'v':
        return '\v';
      case 'a':
        return '\a';
      case 'e':
        return 0x1B;
      case 'x': {
        if (!done() && pattern_[at_] == '{') {
          ++at_;
          const char32_t value = take_hex(1, 8);
          if (take() != '}') {
            unsupported("\\x{ without its brace");
          }
          return value;
        }
        const char32_t value = take_hex(1, 2);
        if (value > 0x7F) {
          unsupported("\\xHH above 7F, a byte rather than a character,");
        }
        return value;
      }
      case 'u':
        return take_hex(4, 4);
      default:
        break;
    }
    if (std::isalnum(static_cast<unsigned char>(c))) {
      unsupported(fmt::format("\\{}", c));
    }
    --at_;  // an escaped punctuation mark or a character beyond ASCII stands for itself
    const size_t length = utf8_length(pattern_.substr(at_));
    const char32_t character = utf8_decode(pattern_.substr(at_));
    at_ += length;
    return character;
  }

  char32_t take_hex(size_t fewest, size_t most) {
    char32_t value = 0;
    size_t digits = 0;
    while (digits < most && !done() && std::isxdigit(static_cast<unsigned char>(pattern_[at_]))) {
      const char c = take();
      value = value * 16 + static_cast<char32_t>(std::isdigit(static_cast<unsigned char>(c))
                                                     ? c - '0'
                                                     : std::tolower(c) - 'a' + 10);
      ++digits;
    }
    if (digits < fewest || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      unsupported("a number that is no character");
    }
    return value;
  }

  static std::string character_text(char32_t c) {
    return fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(c));
  }

  void escape() {
    ++at_;
    const char c = take();
    Set set;
    if (take_set(c, set)) {
      atom(set);
      return;
    }
    const std::string word = "[" + word_class() + "]";
    switch (c) {
      case 'A':
        assertion("\\A");
        return;
      case 'z':
        assertion("\\z");
        return;
      case 'Z':
        assertion("\\Z");
        return;
      case 'b':
        assertion(fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", word));
        return;
      case 'B':
        assertion(fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", word));
        return;
      default:
        atom(character_text(take_escaped_character(c)));
    }
  }

  void char_class() {
    ++at_;
    bool negated = false;
    if (!done() && pattern_[at_] == '^') {
      negated = true;
      ++at_;
    }
    std::string contents;
    std::vector<std::string> complements;  // contents of \S, \P{..} and so on
    bool first = true;
    while (true) {
      if (done()) {
        unsupported("an unfinished class");
      }
      if (pattern_[at_] == ']' && !first) {
        ++at_;
        break;
      }
      first = false;
      if (looking_at("&&")) {
        unsupported("&& in a class");
      }
      if (pattern_[at_] == '[') {
        unsupported("a class within a class");
      }
      if (pattern_[at_] == '\\' && at_ + 1 < pattern_.size()) {
        at_ += 2;
        Set set;
        if (take_set(pattern_[at_ - 1], set)) {
          if (set.negated) {
            complements.push_back(set.contents);
          } else {
            contents += set.contents;
          }
          if (looking_at("-") && !looking_at("-]")) {
            unsupported("a range that begins with a set");
          }
          continue;
        }
        at_ -= 2;
      }
      const char32_t low = take_class_character();
      contents += character_text(low);
      if (looking_at("-") && !looking_at("-]")) {
        ++at_;
        if (done() || pattern_[at_] == '[' || looking_at("&&")) {
          unsupported("this range");
        }
        const char32_t high = take_class_character();
        if (high < low) {
          unsupported("a range that runs backwards");
        }
        contents += "-" + character_text(high);
      }
    }
    emit_class(contents, complements, negated);
  }

  char32_t take_class_character() {
    if (pattern_[at_] == '\\') {
      ++at_;
      const char c = take();
      return c == 'b' ? char32_t{0x08} : take_escaped_character(c);
    }
    const char32_t character = utf8_decode(pattern_.substr(at_));
    at_ += utf8_length(pattern_.substr(at_));
    return character;
  }

  /// PCRE2 has complements of single properties in a class but none of our longer sets, so a class
  /// that holds one becomes alternatives.
  void emit_class(const std::string& contents, const std::vector<std::string>& complements,
                  bool negated) {
    if (complements.empty()) {
      atom(Set{contents, negated});
      return;
    }
    if (contents.empty() && complements.size() == 1) {
      atom(Set{complements.front(), !negated});
      return;
    }
    std::string alternatives = contents.empty() ? "" : "[" + contents + "]";
    for (const std::string& complement : complements) {
      alternatives += (alternatives.empty() ? "[^" : "|[^") + complement + "]";
    }
    atom(negated ? fmt::format("(?:(?!{})(?s:.))", alternatives)
                 : fmt::format("(?:{})", alternatives));
  }

  std::string_view pattern_;
  const std::string& place_;
  size_t at_ = 0;
  std::string out_;
  std::vector<size_t> groups_;  // where each open group begins in out_
  size_t atom_begin_ = 0;
  bool has_atom_ = false;
};

}  // namespace

std::string translate_regex(std::string_view pattern, const std::string& place) {
  return Translator(pattern, place).run();
}

std::string escape_regex(std::string_view text) {
  std::string result;
  for (const char c : text) {
    // Between \Q and \E is no better: the text may hold \E.
    if (static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c))) {
      result += fmt::format("\\x{{{:X}}}", static_cast<unsigned>(c));
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace mdn
