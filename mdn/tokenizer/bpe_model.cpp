#include "mdn/tokenizer/bpe_model.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <mutex>
#include <queue>
#include <shared_mutex>
#include <tuple>

#include "mdn/core/error.h"

namespace mdn {
namespace {

constexpr int32_t kEmpty = -1;
constexpr int32_t kNone = -1;

// Words up to this length are remembered: nearly all of a text's words, and none of its oddities.
constexpr size_t kLongestCached = 64;
// 2^16 words take some 10 MB and cover over 95% of the words of running text.
constexpr size_t kCacheShards = 16;
constexpr size_t kWordsPerShard = size_t{1} << 12;

uint64_t pair_key(int32_t left, int32_t right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

size_t spread(uint64_t key) {
  key *= 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio: neighbouring ids land far apart
  return static_cast<size_t>(key ^ (key >> 32));
}

}  // namespace

/// Split by hash, so that threads seldom wait for each other; a full part takes no more words.
struct BpeModel::Cache {
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
  };
  struct Shard {
    std::shared_mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>, StringHash, std::equal_to<>> words;
  };
  std::array<Shard, kCacheShards> shards;

  Shard& shard_of(std::string_view word) {
    return shards[spread(StringHash{}(word)) % kCacheShards];
  }
  bool find(std::string_view word, std::vector<int32_t>& ids) {
    Shard& shard = shard_of(word);
    const std::shared_lock lock(shard.mutex);
    const auto found = shard.words.find(word);
    if (found == shard.words.end()) {
      return false;
    }
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }
  void insert(std::string_view word, std::vector<int32_t> ids) {
    Shard& shard = shard_of(word);
    const std::unique_lock lock(shard.mutex);
    if (shard.words.size() < kWordsPerShard) {
      shard.words.emplace(word, std::move(ids));
    }
  }
};

BpeModel::BpeModel(std::unordered_map<std::string, int32_t> tokens,
                   const std::vector<Merge>& merges, const Options& options, std::string place)
    : tokens_(std::move(tokens)),
      merge_count_(merges.size()),
      options_(options),
      place_(std::move(place)),
      cache_(std::make_unique<Cache>()) {
  byte_ids_.fill(kNone);
  for (const auto& [bytes, id] : tokens_) {
    if (bytes.size() == 1) {
      byte_ids_[static_cast<uint8_t>(bytes.front())] = id;
    }
  }
  slots_.assign(std::bit_ceil(2 * merges.size() + 1), Slot{0, kEmpty, kNone});
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = pair_key(merges[rank].left, merges[rank].right);
    size_t at = spread(key) & (slots_.size() - 1);
    while (slots_[at].rank != kEmpty && slots_[at].pair != key) {
      at = (at + 1) & (slots_.size() - 1);
    }
    slots_[at] = {key, static_cast<int32_t>(rank), merges[rank].merged};
  }
}

BpeModel::~BpeModel() = default;
BpeModel::BpeModel(BpeModel&&) noexcept = default;
BpeModel& BpeModel::operator=(BpeModel&&) noexcept = default;

const BpeModel::Slot* BpeModel::find_merge(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  for (size_t at = spread(key) & (slots_.size() - 1); slots_[at].rank != kEmpty;
       at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == key) {
      return &slots_[at];
    }
  }
  return nullptr;
}

void BpeModel::first_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  for (const char c : word) {
    const auto byte = static_cast<uint8_t>(c);
    const int32_t id = byte_ids_[byte];
    if (id != kNone) {
      symbols.push_back(id);
      after_unknown = false;
      continue;
    }
    MDN_CHECK(options_.unknown.has_value(),
              "{}: the vocabulary has no token for byte 0x{:02X} and no unk_token, so a text that "
              "holds it cannot be encoded",
              place_, byte);
    if (!(after_unknown && options_.fuse_unknown)) {
      symbols.push_back(*options_.unknown);
    }
    after_unknown = true;
  }
}

void BpeModel::merge_all(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const {
  const auto count = static_cast<int64_t>(symbols.size());
  // A doubly linked list over the symbols; a merge keeps the left one's place.
  std::vector<int64_t> next(symbols.size());
  std::vector<int64_t> previous(symbols.size());
  for (int64_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  // (rank, place of the left symbol, merged): the least is merged next.
  using Candidate = std::tuple<int32_t, int64_t, int32_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int64_t left, int64_t right) {
    if (left >= 0 && right < count) {
      if (const Slot* slot = find_merge(symbols[left], symbols[right])) {
        queue.emplace(slot->rank, left, slot->merged);
      }
    }
  };
  for (int64_t i = 0; i + 1 < count; ++i) {
    offer(i, i + 1);
  }
  while (!queue.empty()) {
    const auto [rank, left, merged] = queue.top();
    queue.pop();
    const int64_t right = symbols[left] == kNone ? count : next[left];
    if (right >= count) {
      continue;  // the left symbol is gone, or is the last
    }
    const Slot* slot = find_merge(symbols[left], symbols[right]);
    if (slot == nullptr || slot->rank != rank) {
      continue;  // either symbol has changed since
    }
    symbols[left] = merged;
    symbols[right] = kNone;
    next[left] = next[right];
    if (next[left] < count) {
      previous[next[left]] = left;
    }
    offer(previous[left], left);
    offer(left, next[left]);
  }
  for (int64_t i = 0; i < count; i = next[i]) {
    ids.push_back(symbols[i]);
  }
}

void BpeModel::encode(std::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) {
    return;
  }
  if (options_.ignore_merges) {
    if (const auto found = tokens_.find(std::string(word)); found != tokens_.end()) {
      ids.push_back(found->second);
      return;
    }
  }
  const bool cached = word.size() <= kLongestCached;
  if (cached && cache_->find(word, ids)) {
    return;
  }
  std::vector<int32_t> symbols;
  symbols.reserve(word.size());
  first_symbols(word, symbols);
  const size_t begin = ids.size();
  merge_all(symbols, ids);
  if (cached) {
    cache_->insert(word, {ids.begin() + static_cast<std::ptrdiff_t>(begin), ids.end()});
  }
}

}  // namespace mdn
