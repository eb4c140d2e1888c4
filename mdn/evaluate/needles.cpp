#include "mdn/evaluate/needles.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "mdn/core/error.h"
#include "mdn/evaluate/text.h"

namespace mdn::evaluate {
namespace {

constexpr const char* kNoise =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

// Keys are ADJECTIVE-NOUN.
constexpr const char* kAdjectives =
    "able amber ancient autumn bitter bold brave brief bright broad brown busy calm careful clean "
    "clear clever cold common cool crisp curious daily damp dark deep dry dusty eager early easy "
    "empty even faint fair famous fast fierce final fine firm fresh frozen gentle glad golden "
    "grand "
    "grey happy hasty heavy hidden hollow honest humble idle jolly keen kind large late lazy light "
    "little lively lonely long loud lucky mellow mild modest narrow neat nimble noble odd old pale "
    "patient plain polite proud quick quiet rapid rare restless rough round royal rusty secret "
    "sharp "
    "shy silent simple sleepy slow small smooth soft solid sour steady still stormy strong sturdy "
    "subtle sudden sunny sweet swift tall tame tender thin tidy tiny vast velvet warm weary wide "
    "wild wise witty wooden young";
constexpr const char* kNouns =
    "acorn anchor anvil apple arrow attic badge barn basket beacon bell bench blanket boat bottle "
    "branch bread bridge broom bucket button cabin cactus camera candle canyon carpet castle cedar "
    "chair chapel cliff clock cloud coast coin comet copper corner cottage crane creek crown "
    "curtain "
    "desert dragon drum eagle engine falcon feather fence fern ferry field flame flute forest "
    "fossil "
    "fountain garden gate glacier glove goose granite guitar hammer harbor harvest hill horse "
    "island "
    "ivy jacket jungle kettle kite ladder lagoon lake lantern leaf lemon lighthouse lion lizard "
    "maple "
    "marble market meadow mirror monkey moon mountain needle oak ocean orchard otter owl paddle "
    "palace parrot pebble pencil pepper piano pillow pine planet pocket pond prairie quarry rabbit "
    "raft rain raven ribbon river rocket saddle sail shadow shell ship shovel silver spoon spring "
    "stable star stone stream summit table temple thunder tiger tower trail tunnel turtle valley "
    "village violin wagon walnut whale wheel window winter wolf yarn";

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) {
    words.push_back(word);
  }
  return words;
}

const std::string& pick(const std::vector<std::string>& from, Random& random) {
  return from[static_cast<size_t>(random.below(static_cast<int64_t>(from.size())))];
}

std::string word_key(Random& random) {
  static const std::vector<std::string> adjectives = words_of(kAdjectives);
  static const std::vector<std::string> nouns = words_of(kNouns);
  const std::string& adjective = pick(adjectives, random);
  return adjective + "-" + pick(nouns, random);
}

// Version 4 of RFC 4122: 122 random bits.
std::string uuid(Random& random) {
  const uint64_t high = (random.bits() & ~0xf000ULL) | 0x4000ULL;
  const uint64_t low = (random.bits() & ~(3ULL << 62)) | (1ULL << 63);
  return fmt::format("{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, high >> 16 & 0xffff,
                     high & 0xffff, low >> 48, low & 0xffffffffffffULL);
}

std::string seven_digits(Random& random) {
  return std::to_string(1'000'000 + random.below(9'000'000));
}

std::string join(const std::vector<std::string>& parts, const std::string& mark) {
  return fmt::format("{}", fmt::join(parts, mark));
}

// "a", "a, and b", "a, b, and c"
std::string listed(const std::vector<std::string>& names) {
  if (names.size() == 1) {
    return names.front();
  }
  return join({names.begin(), names.end() - 1}, ", ") + ", and " + names.back();
}

int64_t length_of(const Tokenizer& tokenizer, const std::string& text) {
  return static_cast<int64_t>(tokenizer.encode(text).size());
}

}  // namespace

std::vector<std::string> split_sentences(const std::string& text) {
  std::vector<std::string> sentences;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (std::string(".!?").find(text[i]) == std::string::npos) {
      continue;
    }
    const size_t end = std::min(text.find_first_not_of("\"')]", i + 1), text.size());
    const size_t next = std::min(text.find_first_not_of(" \t\r\n", end), text.size());
    if (next > end || end == text.size()) {
      sentences.push_back(text.substr(begin, end - begin));
      begin = next;
      i = next - 1;
    }
  }
  if (begin < text.size()) {
    sentences.push_back(text.substr(begin));
  }
  return sentences;
}

std::string NeedleText::with_values() const {
  return prompt + " " + join(values, ", ");
}

const std::vector<NeedleTask::Kind>& NeedleTask::kinds() {
  static const std::vector<Kind> kinds = {
      {"niah_single_1", Haystack::kNoise, false, false, 1, 1, 1},
      {"niah_single_2", Haystack::kEssay, false, false, 1, 1, 1},
      {"niah_single_3", Haystack::kEssay, false, true, 1, 1, 1},
      {"niah_multikey_1", Haystack::kEssay, false, false, 4, 1, 1},
      {"niah_multikey_2", Haystack::kNeedles, false, false, 1, 1, 1},
      {"niah_multikey_3", Haystack::kNeedles, true, true, 1, 1, 1},
      {"niah_multivalue", Haystack::kEssay, false, false, 1, 4, 1},
      {"niah_multiquery", Haystack::kEssay, false, false, 4, 1, 4},
  };
  return kinds;
}

const NeedleTask::Kind* NeedleTask::find(const std::string& name) {
  for (const Kind& kind : kinds()) {
    if (name == kind.name) {
      return &kind;
    }
  }
  return nullptr;
}

bool NeedleTask::is_one(const std::string& name) {
  return find(name) != nullptr;
}

bool NeedleTask::needs_essay(const std::string& name) {
  return is_one(name) && find(name)->haystack == Haystack::kEssay;
}

std::vector<std::string> NeedleTask::names() {
  std::vector<std::string> names;
  for (const Kind& kind : kinds()) {
    names.emplace_back(kind.name);
  }
  return names;
}

NeedleTask::NeedleTask(const TaskSpec& spec, const Tokenizer& tokenizer, const std::string& essay)
    : tokenizer_(tokenizer), length_(spec.integer_or("length", 4096, 1, int64_t{1} << 24)) {
  const Kind* kind = find(spec.name());
  MDN_CHECK(kind != nullptr, "{}: no needle task; these are {}", spec.name(),
            fmt::join(names(), ", "));
  kind_ = *kind;
  if (kind_.haystack == Haystack::kEssay) {
    essay_ = words_of(essay);
    MDN_CHECK(!essay_.empty(), "{}: its haystack is an essay: {}:text=FILE with some prose",
              kind_.name, kind_.name);
  }
  const auto fits = [&](int64_t units) {
    return length_of(tokenizer_, text(Random(0, 0, 0), units).with_values()) <= length_;
  };
  int64_t most = needles();
  MDN_CHECK(fits(most), "{}: length {}; the shortest example has {} tokens", kind_.name, length_,
            length_of(tokenizer_, text(Random(0, 0, 0), most).with_values()));
  int64_t step = 1;
  while (fits(most + step)) {
    most += step;
    step *= 2;
  }
  for (; step >= 1; step /= 2) {
    most += fits(most + step) ? step : 0;
  }
  units_ = most;
}

OrderedJson NeedleTask::settings() const {
  return {{"length", length_}, {"haystack_units", units_}};
}

std::string NeedleTask::needle(const std::string& key, const std::string& value) const {
  return fmt::format("One of the special magic {} for {} is: {}.",
                     kind_.uuid_values ? "uuids" : "numbers", key, value);
}

std::string NeedleTask::key(Random& random) const {
  return kind_.uuid_keys ? uuid(random) : word_key(random);
}

std::string NeedleTask::value(Random& random) const {
  return kind_.uuid_values ? uuid(random) : seven_digits(random);
}

// Needles between sentences, at different ones of 40 depths that are even from 0 to 100%.
std::string NeedleTask::essay_with(const std::vector<std::string>& needles, Random& random,
                                   int64_t units) const {
  std::vector<std::string> words;
  for (int64_t i = 0; i < units; ++i) {
    words.push_back(essay_[static_cast<size_t>(i) % essay_.size()]);
  }
  const auto sentences = split_sentences(join(words, " "));
  constexpr int64_t kDepths = 40;
  auto depths = random.sample(static_cast<int64_t>(needles.size()), kDepths);
  std::sort(depths.begin(), depths.end());
  std::vector<std::string> parts;
  size_t next = 0;
  for (size_t at = 0; at <= sentences.size(); ++at) {
    const auto place = [&](int64_t depth) {
      const double percent = std::round(100.0 * static_cast<double>(depth) / (kDepths - 1));
      return static_cast<size_t>(static_cast<double>(sentences.size()) * (percent / 100));
    };
    for (; next < needles.size() && place(depths[next]) <= at; ++next) {
      parts.push_back(needles[next]);
    }
    if (at < sentences.size()) {
      parts.push_back(sentences[at]);
    }
  }
  return join(parts, " ");
}

NeedleText NeedleTask::text(Random random, int64_t units) const {
  std::vector<std::string> keys;
  std::vector<std::pair<size_t, std::string>> placed;  // key's index and value
  while (static_cast<int64_t>(keys.size()) < kind_.keys) {
    std::string name = key(random);
    if (std::find(keys.begin(), keys.end(), name) != keys.end()) {
      continue;
    }
    keys.push_back(std::move(name));
    for (int64_t v = 0; v < kind_.values; ++v) {
      placed.emplace_back(keys.size() - 1, value(random));
    }
  }
  random.shuffle(placed);
  std::vector<std::string> needles;
  for (const auto& [k, v] : placed) {
    needles.push_back(needle(keys[k], v));
  }

  std::string haystack;
  if (kind_.haystack == Haystack::kEssay) {
    haystack = essay_with(needles, random, units);
  } else {
    std::vector<std::string> lines;
    while (static_cast<int64_t>(lines.size()) < units) {
      if (kind_.haystack == Haystack::kNoise) {
        lines.emplace_back(kNoise);
        continue;
      }
      const std::string other = key(random);
      if (std::find(keys.begin(), keys.end(), other) == keys.end()) {
        lines.push_back(needle(other, value(random)));
      }
    }
    auto places = random.sample(static_cast<int64_t>(needles.size()), units);
    std::sort(places.begin(), places.end());
    for (size_t i = needles.size(); i-- > 0;) {  // from behind: places before it keep their numbers
      lines.insert(lines.begin() + places[i], needles[i]);
    }
    haystack = join(lines, "\n");
  }

  std::vector<std::string> queries;
  NeedleText text;
  for (const int64_t k : random.sample(kind_.asked, kind_.keys)) {
    queries.push_back(keys[static_cast<size_t>(k)]);
    for (const auto& [of, v] : placed) {  // the values of a key as they stand in the text
      if (of == static_cast<size_t>(k)) {
        text.values.push_back(v);
      }
    }
  }
  const bool one = kind_.asked * kind_.values == 1;
  const std::string thing = std::string(kind_.uuid_values ? "uuid" : "number") + (one ? "" : "s");
  text.prompt = fmt::format(
      "{} special magic {} {} hidden within the following text. Make sure to memorize it. I will "
      "quiz you about the {} afterwards.\n{}\nWhat {} the special magic {} for {} mentioned in the "
      "provided text? The special magic {} for {} mentioned in the provided text {}",
      one ? "A" : "Some", thing, one ? "is" : "are", thing, haystack, one ? "is" : "are all", thing,
      listed(queries), thing, listed(queries), one ? "is" : "are");
  return text;
}

NeedleExample NeedleTask::example(int64_t seed, Purpose purpose, int64_t index) const {
  // Examples differ by a few tokens: the haystack gives way.
  NeedleText text;
  std::vector<int32_t> tokens;
  for (int64_t units = units_;; units -= std::max<int64_t>(1, units / 100)) {
    MDN_CHECK(units >= needles(), "{}: example {} does not fit {} tokens", kind_.name, index,
              length_);
    text = this->text(Random(seed, static_cast<uint64_t>(purpose), index), units);
    tokens = tokenizer_.encode(text.with_values());
    if (static_cast<int64_t>(tokens.size()) <= length_) {
      break;
    }
  }
  NeedleExample example;
  example.sequence.inputs.assign(tokens.begin(), tokens.end() - 1);
  example.sequence.targets.assign(tokens.size() - 1, kIgnoredTarget);
  std::string before = text.prompt;
  size_t asked = 0;
  for (const std::string& value : text.values) {
    // A value's tokens: those after the text before it, the space included.
    const auto first = static_cast<size_t>(length_of(tokenizer_, before));
    before += " " + value;
    const auto last = static_cast<size_t>(length_of(tokenizer_, before));
    MDN_CHECK(first < last && last <= tokens.size(), "{}: '{}' has no tokens of its own",
              kind_.name, value);
    for (size_t at = first; at < last; ++at) {
      example.sequence.targets[at - 1] = tokens[at];
    }
    example.values.emplace_back(asked, asked + last - first);
    asked += last - first;
    before += ",";
  }
  return example;
}

}  // namespace mdn::evaluate
