// Byte pair encoding of one word: starting from its bytes, the adjacent pair that was learned
// first is merged, the leftmost of equals, until no adjacent pair is in the merges.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace mdn {

class BpeModel {
 public:
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t merged;
  };
  struct Options {
    bool ignore_merges = false;      // a word that is a token is that token
    bool fuse_unknown = false;       // adjacent unknown bytes give one unknown token
    std::optional<int32_t> unknown;  // for bytes without a token
  };

  /// `tokens`: id of each token, by its bytes. `merges` in the order of their ranks; of two merges
  /// of the same pair the later one holds. `place` opens error messages.
  BpeModel(std::unordered_map<std::string, int32_t> tokens, const std::vector<Merge>& merges,
           const Options& options, std::string place);
  ~BpeModel();
  BpeModel(BpeModel&&) noexcept;
  BpeModel& operator=(BpeModel&&) noexcept;

  /// Appends the ids of a word, in O(n log n) of its length. Short words are remembered. Threads
  /// may call it at once. Throws for a byte that has no token, when there is no unknown token.
  void encode(std::string_view word, std::vector<int32_t>& ids) const;

  /// The id of a single byte, or -1.
  int32_t byte_id(uint8_t byte) const { return byte_ids_[byte]; }
  bool has_merges() const { return merge_count_ > 0; }

 private:
  struct Slot {
    uint64_t pair;
    int32_t rank;  // kEmpty: no pair here
    int32_t merged;
  };
  struct Cache;

  const Slot* find_merge(int32_t left, int32_t right) const;
  void first_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  void merge_all(std::vector<int32_t>& symbols, std::vector<int32_t>& ids) const;

  std::unordered_map<std::string, int32_t> tokens_;
  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, a power of two
  size_t merge_count_ = 0;
  Options options_;
  std::string place_;
  std::unique_ptr<Cache> cache_;
};

}  // namespace mdn
