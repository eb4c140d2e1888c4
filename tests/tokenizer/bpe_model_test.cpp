#include "mdn/tokenizer/bpe_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Vocabulary {
  std::unordered_map<std::string, int32_t> tokens;
  std::vector<BpeModel::Merge> merges;
};

/// The letters a to d and `count` random merges of what there is.
Vocabulary random_vocabulary(unsigned seed, int count) {
  Vocabulary vocabulary;
  std::vector<std::string> names;
  for (const char* letter : {"a", "b", "c", "d"}) {
    vocabulary.tokens.emplace(letter, static_cast<int32_t>(names.size()));
    names.emplace_back(letter);
  }
  std::mt19937 rng(seed);
  for (int i = 0; i < count; ++i) {
    const auto left = static_cast<int32_t>(rng() % names.size());
    const auto right = static_cast<int32_t>(rng() % names.size());
    const std::string merged = names[left] + names[right];
    const auto [entry, is_new] =
        vocabulary.tokens.emplace(merged, static_cast<int32_t>(names.size()));
    if (is_new) {
      names.push_back(merged);
    }
    vocabulary.merges.push_back({left, right, entry->second});
  }
  return vocabulary;
}

/// The definition, step by step.
std::vector<int32_t> encode_by_definition(const Vocabulary& vocabulary, std::string_view word) {
  std::vector<int32_t> ids;
  for (const char c : word) {
    ids.push_back(vocabulary.tokens.at(std::string(1, c)));
  }
  while (true) {
    size_t best_rank = vocabulary.merges.size();
    size_t best_place = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      // Of several merges of a pair the last holds.
      for (size_t rank = vocabulary.merges.size(); rank-- > 0;) {
        const BpeModel::Merge& merge = vocabulary.merges[rank];
        if (merge.left == ids[i] && merge.right == ids[i + 1]) {
          if (rank < best_rank) {
            best_rank = rank;
            best_place = i;
          }
          break;
        }
      }
    }
    if (best_rank == vocabulary.merges.size()) {
      return ids;
    }
    ids[best_place] = vocabulary.merges[best_rank].merged;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best_place) + 1);
  }
}

std::string random_word(std::mt19937& rng, size_t longest) {
  std::string word;
  for (size_t n = rng() % (longest + 1); n > 0; --n) {
    word += static_cast<char>('a' + rng() % 4);
  }
  return word;
}

TEST(BpeModel, AgreesWithTheDefinition) {
  std::mt19937 rng(5);
  for (unsigned seed = 0; seed < 30; ++seed) {
    const Vocabulary vocabulary = random_vocabulary(seed, 5 + static_cast<int>(seed) * 2);
    const BpeModel model(vocabulary.tokens, vocabulary.merges, {}, "test");
    for (int i = 0; i < 60; ++i) {
      const std::string word = random_word(rng, i < 50 ? 20 : 150);
      const std::vector<int32_t> expected = encode_by_definition(vocabulary, word);
      for (int pass = 0; pass < 2; ++pass) {  // the second comes from the cache
        std::vector<int32_t> ids;
        model.encode(word, ids);
        EXPECT_EQ(ids, expected) << word;
      }
    }
  }
}

TEST(BpeModel, AppendsAndHandlesTheEmptyWord) {
  const Vocabulary vocabulary = random_vocabulary(1, 0);
  const BpeModel model(vocabulary.tokens, {}, {}, "test");
  std::vector<int32_t> ids = {7};
  model.encode("", ids);
  model.encode("ab", ids);
  EXPECT_THAT(ids, ElementsAre(7, 0, 1));
  EXPECT_FALSE(model.has_merges());
}

TEST(BpeModel, UnknownBytes) {
  const Vocabulary vocabulary = random_vocabulary(1, 0);
  const auto encode = [&](const BpeModel::Options& options, const char* word) {
    std::vector<int32_t> ids;
    BpeModel(vocabulary.tokens, {}, options, "t.json").encode(word, ids);
    return ids;
  };
  EXPECT_THAT(error_of([&] { encode({}, "ax"); }),
              HasSubstr("t.json: the vocabulary has no token for byte 0x78 and no unk_token"));
  BpeModel::Options options;
  options.unknown = 3;
  EXPECT_THAT(encode(options, "xxaxb"), ElementsAre(3, 3, 0, 3, 1));
  options.fuse_unknown = true;
  EXPECT_THAT(encode(options, "xxaxb"), ElementsAre(3, 0, 3, 1));
}

TEST(BpeModel, IgnoreMergesTakesWholeTokens) {
  const std::unordered_map<std::string, int32_t> tokens = {{"a", 0}, {"b", 1}, {"aab", 2}};
  std::vector<int32_t> ids;
  BpeModel::Options options;
  BpeModel(tokens, {}, options, "t").encode("aab", ids);
  EXPECT_THAT(ids, ElementsAre(0, 0, 1));
  options.ignore_merges = true;
  ids.clear();
  const BpeModel model(tokens, {}, options, "t");
  model.encode("aab", ids);
  model.encode("aabb", ids);
  EXPECT_THAT(ids, ElementsAre(2, 0, 0, 1, 1));
}

/// At n² steps this would take an hour; it is here for the time limit of the suite to find.
TEST(BpeModel, WordOfAMillionBytes) {
  std::unordered_map<std::string, int32_t> tokens = {{"a", 0}};
  std::vector<BpeModel::Merge> merges;
  for (int32_t i = 0; i < 10; ++i) {
    tokens.emplace(std::string(size_t{2} << i, 'a'), i + 1);
    merges.push_back({i, i, i + 1});
  }
  const BpeModel model(std::move(tokens), merges, {}, "test");
  std::vector<int32_t> ids;
  model.encode(std::string((size_t{1} << 20) + 5, 'a'), ids);
  std::vector<int32_t> expected(size_t{1} << 10, 10);
  expected.insert(expected.end(), {2, 0});  // 5 = 4 + 1
  EXPECT_EQ(ids, expected);
}

TEST(BpeModel, ThreadsShareIt) {
  const Vocabulary vocabulary = random_vocabulary(9, 40);
  const BpeModel model(vocabulary.tokens, vocabulary.merges, {}, "test");
  std::vector<std::string> words;
  std::vector<std::vector<int32_t>> expected;
  std::mt19937 rng(2);
  for (int i = 0; i < 300; ++i) {
    words.push_back(random_word(rng, 12));
    expected.push_back(encode_by_definition(vocabulary, words.back()));
  }
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < 20 * words.size(); ++i) {
        const size_t at = (i * (2 * t + 1)) % words.size();
        std::vector<int32_t> ids;
        model.encode(words[at], ids);
        wrong[t] += ids != expected[at] ? 1 : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

}  // namespace
}  // namespace mdn
