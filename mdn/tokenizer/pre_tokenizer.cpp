#include "mdn/tokenizer/pre_tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <span>

#include "mdn/core/error.h"
#include "mdn/tokenizer/regex_translation.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

// GPT-2's published pattern: contractions, then letters, numbers and the rest, each with the space
// before it; white space leaves its last character to the word that follows.
constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct Span {
  std::string_view text;
  bool is_match;
};

std::vector<Span> spans_of(const Regex& regex, bool invert, std::string_view text) {
  std::vector<Span> spans;
  Regex::Matcher matcher(regex, text);
  size_t done = 0;
  size_t begin = 0;
  size_t end = 0;
  while (matcher.next(begin, end)) {
    if (begin > done) {
      spans.push_back({text.substr(done, begin - done), invert});
    }
    spans.push_back({text.substr(begin, end - begin), !invert});
    done = end;
  }
  if (done < text.size()) {
    spans.push_back({text.substr(done), invert});
  }
  return spans;
}

std::string_view join(std::string_view left, std::string_view right) {
  return {left.data(), left.size() + right.size()};
}

}  // namespace

Normalizer::Normalizer(const Json& json, const std::string& place) {
  add(json, place);
}

void Normalizer::add(const Json& json, const std::string& place) {
  if (json.is_null()) {
    return;
  }
  const JsonObject object(json, place);
  const std::string type = object.string("type");
  if (type == "Sequence") {
    for (const Json& part : object.array("normalizers")) {
      add(part, place);
    }
  } else if (type == "NFC") {
    forms_.push_back(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  } else if (type == "NFD") {
    forms_.push_back(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  } else if (type == "NFKC") {
    forms_.push_back(UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
  } else if (type == "NFKD") {
    forms_.push_back(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
  } else {
    MDN_THROW(
        "{}: the normalizer \"{}\" is not supported; supported are null, NFC, NFD, NFKC, NFKD "
        "and Sequence",
        place, type);
  }
}

std::string Normalizer::apply(std::string_view text) const {
  std::string result(text);
  const bool ascii =
      std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
  if (ascii) {
    return result;  // every form leaves ASCII as it is
  }
  for (const int form : forms_) {
    utf8proc_uint8_t* mapped = nullptr;
    const utf8proc_ssize_t length =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(result.data()),
                     static_cast<utf8proc_ssize_t>(result.size()), &mapped,
                     static_cast<utf8proc_option_t>(form));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
    MDN_CHECK(length >= 0, "normalising {} bytes: {}", result.size(), utf8proc_errmsg(length));
    result.assign(reinterpret_cast<const char*>(mapped), static_cast<size_t>(length));
  }
  return result;
}

void split_at_matches(const Regex& regex, SplitBehavior behavior, bool invert,
                      std::string_view text, std::vector<std::string_view>& pieces) {
  const auto put = [&pieces](std::string_view piece) {
    if (!piece.empty()) {
      pieces.push_back(piece);
    }
  };
  const std::vector<Span> spans = spans_of(regex, invert, text);
  switch (behavior) {
    case SplitBehavior::kIsolated:
      for (const Span& span : spans) {
        put(span.text);
      }
      return;
    case SplitBehavior::kRemoved:
      for (const Span& span : spans) {
        if (!span.is_match) {
          put(span.text);
        }
      }
      return;
    case SplitBehavior::kContiguous:
    case SplitBehavior::kMergedWithPrevious: {
      // Contiguous joins equal neighbours; merged, a match goes to the text before it, unless that
      // ended in a match already.
      std::string_view open;
      bool before = false;
      for (const Span& span : spans) {
        const bool joins = behavior == SplitBehavior::kContiguous ? span.is_match == before
                                                                  : span.is_match && !before;
        if (open.data() != nullptr && joins) {
          open = join(open, span.text);
        } else {
          put(open);
          open = span.text;
        }
        before = span.is_match;
      }
      put(open);
      return;
    }
    case SplitBehavior::kMergedWithNext: {
      const size_t begin = pieces.size();
      std::string_view open;
      bool after = false;
      for (auto span = spans.rbegin(); span != spans.rend(); ++span) {
        if (open.data() != nullptr && span->is_match && !after) {
          open = join(span->text, open);
        } else {
          put(open);
          open = span->text;
        }
        after = span->is_match;
      }
      put(open);
      std::reverse(pieces.begin() + static_cast<std::ptrdiff_t>(begin), pieces.end());
      return;
    }
  }
}

PreTokenizer::PreTokenizer(const Json& json, const std::string& place) {
  MDN_CHECK(!json.is_null(),
            "{}: is null; a byte-level BPE needs a ByteLevel, alone or last in a Sequence", place);
  add(json, place, /*last=*/true);
  MDN_CHECK(has_byte_level_, "{}: has no ByteLevel; only byte-level BPE is supported", place);
}

void PreTokenizer::add(const Json& json, const std::string& place, bool last) {
  const JsonObject object(json, place);
  const std::string type = object.string("type");
  if (type == "Sequence") {
    const Json& parts = object.array("pretokenizers");
    for (size_t i = 0; i < parts.size(); ++i) {
      add(parts[i], fmt::format("{}[{}]", place, i), last && i + 1 == parts.size());
    }
  } else if (type == "ByteLevel") {
    MDN_CHECK(last && !has_byte_level_,
              "{}: ByteLevel is not the last step; only a single one at the end is supported",
              place);
    has_byte_level_ = true;
    add_prefix_space_ = object.boolean_or("add_prefix_space", true);
    if (object.boolean_or("use_regex", true)) {
      byte_level_.push_back({Regex(kGpt2Pattern, place), SplitBehavior::kIsolated, false});
    }
    object.boolean_or("trim_offsets", true);  // of offsets, which are not computed
  } else if (type == "Split") {
    const JsonObject pattern = object.object("pattern");
    const std::string behavior = object.string(
        "behavior", {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"});
    MDN_CHECK(pattern.has("Regex") != pattern.has("String"),
              "{}: a pattern must be one of {{\"Regex\": ...}} and {{\"String\": ...}}", place);
    Regex regex(
        pattern.has("Regex") ? pattern.string("Regex") : escape_regex(pattern.string("String")),
        place);
    const SplitBehavior what = behavior == "Isolated"  ? SplitBehavior::kIsolated
                               : behavior == "Removed" ? SplitBehavior::kRemoved
                               : behavior == "MergedWithPrevious"
                                   ? SplitBehavior::kMergedWithPrevious
                               : behavior == "MergedWithNext" ? SplitBehavior::kMergedWithNext
                                                              : SplitBehavior::kContiguous;
    steps_.push_back({std::move(regex), what, object.boolean_or("invert", false)});
  } else if (type == "Digits") {
    steps_.push_back({Regex("\\p{N}", place),
                      object.boolean_or("individual_digits", false) ? SplitBehavior::kIsolated
                                                                    : SplitBehavior::kContiguous,
                      false});
  } else {
    MDN_THROW(
        "{}: the pre_tokenizer \"{}\" is not supported; supported are ByteLevel, Split, Digits "
        "and Sequence",
        place, type);
  }
}

bool PreTokenizer::keeps_text() const {
  return !add_prefix_space_ && std::none_of(steps_.begin(), steps_.end(), [](const Step& step) {
    return step.behavior == SplitBehavior::kRemoved;
  });
}

void PreTokenizer::words(std::string_view text, bool may_prefix,
                         const std::function<void(std::string_view)>& word) const {
  const auto cut = [](const Step& step, std::span<const std::string_view> from) {
    std::vector<std::string_view> to;
    for (const std::string_view piece : from) {
      split_at_matches(step.regex, step.behavior, step.invert, piece, to);
    }
    return to;
  };
  std::vector<std::string_view> pieces = {text};
  for (const Step& step : steps_) {
    pieces = cut(step, pieces);
  }
  if (!add_prefix_space_) {
    if (!byte_level_.empty()) {
      pieces = cut(byte_level_.front(), pieces);
    }
    std::for_each(pieces.begin(), pieces.end(), word);
    return;
  }
  std::string prefixed;
  bool first = true;
  for (std::string_view piece : pieces) {
    if (!piece.starts_with(' ') && (may_prefix || !first)) {
      prefixed.assign(1, ' ').append(piece);
      piece = prefixed;
    }
    first = false;
    if (byte_level_.empty()) {
      word(piece);
      continue;
    }
    const std::vector<std::string_view> parts = cut(byte_level_.front(), {&piece, 1});
    std::for_each(parts.begin(), parts.end(), word);
  }
}

}  // namespace mdn
