#include "mdn/evaluate/synthetic.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "mdn/core/error.h"

namespace mdn::evaluate {
namespace {

constexpr int64_t kLongest = int64_t{1} << 24;

/// Keys of a name, for the kinds below.
const std::vector<std::string> kNames = {"mqar", "copy", "parity", "s3", "s5"};

void check_vocab(const std::string& name, int64_t vocab, int64_t needed, const char* why) {
  MDN_CHECK(vocab >= needed, "{}: a vocabulary of {}; {} needs {}", name, vocab, why, needed);
}

}  // namespace

std::vector<std::vector<int64_t>> permutations(int64_t things) {
  std::vector<int64_t> element(static_cast<size_t>(things));
  std::iota(element.begin(), element.end(), 0);
  std::vector<std::vector<int64_t>> all;
  do {
    all.push_back(element);
  } while (std::next_permutation(element.begin(), element.end()));
  return all;
}

int64_t compose(const std::vector<std::vector<int64_t>>& elements, int64_t a, int64_t b) {
  std::vector<int64_t> product;
  for (const int64_t x : elements[static_cast<size_t>(b)]) {
    product.push_back(elements[static_cast<size_t>(a)][static_cast<size_t>(x)]);
  }
  return std::lower_bound(elements.begin(), elements.end(), product) - elements.begin();
}

bool SyntheticTask::is_one(const std::string& name) {
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end();
}

SyntheticTask::SyntheticTask(const TaskSpec& spec, int64_t vocab)
    : name_(spec.name()), vocab_(spec.integer_or("vocab", vocab, 2, int64_t{1} << 31)) {
  MDN_CHECK(is_one(name_), "{}: no task over token ids; these are {}", name_,
            fmt::join(kNames, ", "));
  length_ = spec.integer_or("length", 64, 2, kLongest);
  if (name_ == "mqar") {
    pairs_ = spec.integer_or("pairs", 8, 1);
    power_ = spec.real_or("power", 0.01, 1e-6, 1.0);
    random_fill_ = spec.integer_or("fill", 1, 0, 1) == 1;
    MDN_CHECK(length_ % 2 == 0 && 4 * pairs_ <= length_,
              "mqar: length {} with {} pairs; an even length of at least 4 tokens a pair is needed",
              length_, pairs_);
    // Keys are ids 1 to V/2 - 1, values V/2 to V - 1.
    check_vocab(name_, vocab_ / 2 - 1, pairs_, "half of it without one id holds the keys, so this");
  } else if (name_ == "copy") {
    symbols_ = spec.integer_or("symbols", std::min<int64_t>(26, vocab_ - 1), 1);
    MDN_CHECK(length_ % 2 == 0, "copy: length {}; it must be even: symbols, separator, symbols",
              length_);
    check_vocab(name_, vocab_, symbols_ + 1, "symbols and the separator, so this");
  } else if (name_ == "parity") {
    check_vocab(name_, vocab_, 2, "a bit, so this");
  } else {
    things_ = name_ == "s3" ? 3 : 5;
    elements_ = permutations(things_);
    check_vocab(name_, vocab_, static_cast<int64_t>(elements_.size()), "the group, so this");
  }
}

OrderedJson SyntheticTask::settings() const {
  OrderedJson json = {{"length", length_}, {"vocab", vocab_}};
  if (name_ == "mqar") {
    json["pairs"] = pairs_;
    json["power"] = power_;
    json["fill"] = random_fill_ ? 1 : 0;
  } else if (name_ == "copy") {
    json["symbols"] = symbols_;
  }
  return json;
}

Sequence SyntheticTask::example(int64_t seed, Purpose purpose, int64_t index) const {
  Random random(seed, static_cast<uint64_t>(purpose), index);
  return name_ == "mqar" ? mqar(random) : name_ == "copy" ? copy(random) : state_tracking(random);
}

// key_1 value_1 ... key_n value_n, then a query at 2 gap_i, gap drawn with p(x) ~ x^(power - 1),
// each place once.
Sequence SyntheticTask::mqar(Random& random) const {
  const int64_t context = 2 * pairs_, places = (length_ - context) / 2;
  const int64_t values_from = vocab_ / 2;
  const auto keys = random.sample(pairs_, values_from - 1);
  const auto values = random.sample(pairs_, vocab_ - values_from);
  // Drawing without replacement by weights w: the smallest of -log(u) / w come first.
  std::vector<std::pair<double, int64_t>> order;
  for (int64_t place = 0; place < places; ++place) {
    const double weight = std::pow(static_cast<double>(place + 1), power_ - 1.0);
    order.emplace_back(-std::log(random.uniform()) / weight, place);
  }
  std::partial_sort(order.begin(), order.begin() + pairs_, order.end());

  constexpr int64_t kEmpty = 0;
  Sequence example{.inputs = std::vector<int64_t>(static_cast<size_t>(length_), kEmpty),
                   .targets = std::vector<int64_t>(static_cast<size_t>(length_), kIgnoredTarget)};
  for (int64_t i = 0; i < pairs_; ++i) {
    const auto pair = static_cast<size_t>(i);
    const int64_t key = 1 + keys[pair], value = values_from + values[pair];
    const auto query = static_cast<size_t>(context + 2 * order[pair].second);
    example.inputs[2 * pair] = key;
    example.inputs[2 * pair + 1] = value;
    example.inputs[query] = key;
    example.targets[query] = value;
  }
  if (random_fill_) {
    for (int64_t& input : example.inputs) {
      input = input == kEmpty ? random.below(vocab_) : input;
    }
  }
  return example;
}

// x_1 ... x_n | x_1 ... x_(n-1), of which the targets after | are x_1 ... x_n
Sequence SyntheticTask::copy(Random& random) const {
  const int64_t n = length_ / 2;
  Sequence example;
  for (int64_t i = 0; i < n; ++i) {
    example.inputs.push_back(random.below(symbols_));
  }
  example.targets.assign(static_cast<size_t>(n), kIgnoredTarget);
  example.targets.insert(example.targets.end(), example.inputs.begin(), example.inputs.end());
  example.inputs.push_back(symbols_);
  example.inputs.insert(example.inputs.end(), example.targets.begin() + n,
                        example.targets.end() - 1);
  return example;
}

// y_t = g_1 g_2 ... g_t, the last one applied first; for parity the sum modulo 2
Sequence SyntheticTask::state_tracking(Random& random) const {
  const auto order = things_ == 0 ? int64_t{2} : static_cast<int64_t>(elements_.size());
  Sequence example;
  int64_t state = 0;  // the identity
  for (int64_t t = 0; t < length_; ++t) {
    const int64_t element = random.below(order);
    state = things_ == 0 ? (state + element) % 2 : compose(elements_, state, element);
    example.inputs.push_back(element);
    example.targets.push_back(state);
  }
  return example;
}

}  // namespace mdn::evaluate
