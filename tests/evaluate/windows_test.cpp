#include "mdn/evaluate/windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/core/error.h"
#include "tests/evaluate/fixtures.h"
#include "tests/io/scratch.h"

namespace mdn::evaluate {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(Windows, PairsOfTheHarness) {
  const auto tokenizer =
      load_tokenizer(std::filesystem::path(MDN_TEST_DATA) / "tokenizers" / "gpt2");
  ASSERT_TRUE(tokenizer->eos_id().has_value());
  for (const Json& pair : expected().at("pairs")) {
    const EncodedPair got =
        encode_pair(*tokenizer, pair.at("context").get<std::string>(),
                    pair.at("continuation").get<std::string>(), tokenizer->eos_id());
    EXPECT_EQ(Json(got.context), pair.at("context_ids")) << pair;
    EXPECT_EQ(Json(got.continuation), pair.at("continuation_ids")) << pair;
  }
}

// The harness's windows as (context, predicted); ours are inputs with a target each or none, so
// context + predicted[:-1] are the inputs.
TEST(Windows, RollingWindowsOfTheHarness) {
  for (const Json& example : expected().at("windows")) {
    std::vector<int64_t> tokens = {9};
    for (int64_t i = 0; i < example.at("tokens").get<int64_t>(); ++i) {
      tokens.push_back(10 + i);
    }
    const auto got = rolling_sequences(tokens, example.at("window").get<int64_t>(),
                                       example.at("stride").get<int64_t>());
    const Json& want = example.at("disjoint");
    ASSERT_EQ(got.size(), want.size()) << example;
    for (size_t i = 0; i < got.size(); ++i) {
      auto inputs = want[i][0].get<std::vector<int64_t>>();
      const auto predicted = want[i][1].get<std::vector<int64_t>>();
      std::vector<int64_t> targets(inputs.size() - 1, kIgnoredTarget);
      inputs.insert(inputs.end(), predicted.begin(), predicted.end() - 1);
      targets.insert(targets.end(), predicted.begin(), predicted.end());
      EXPECT_EQ(got[i].inputs, inputs) << example;
      EXPECT_EQ(got[i].targets, targets) << example;
    }
  }
}

TEST(Windows, EveryTokenOnce) {
  std::vector<int64_t> tokens(38);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (int64_t window = 0; window <= 40; ++window) {
    for (int64_t stride = 1; stride <= std::max<int64_t>(window, 1); ++stride) {
      std::vector<int64_t> targets;
      for (const Sequence& sequence : rolling_sequences(tokens, window, stride)) {
        ASSERT_EQ(sequence.inputs.size(), sequence.targets.size());
        ASSERT_TRUE(window == 0 || static_cast<int64_t>(sequence.inputs.size()) <= window);
        for (size_t i = 0; i < sequence.targets.size(); ++i) {
          if (sequence.targets[i] != kIgnoredTarget) {
            EXPECT_EQ(sequence.targets[i], sequence.inputs[i] + 1);
            targets.push_back(sequence.targets[i]);
          }
        }
      }
      EXPECT_EQ(targets, std::vector<int64_t>(tokens.begin() + 1, tokens.end()));
    }
  }
  EXPECT_TRUE(rolling_sequences(std::vector<int64_t>{1}, 4, 4).empty());
  EXPECT_THAT(error_of([&] { rolling_sequences(tokens, 4, 5); }), HasSubstr("1 to 4"));
}

TEST(Windows, ContinuationLosesTheBeginningOfItsContext) {
  const EncodedPair pair{.context = {1, 2, 3, 4}, .continuation = {5, 6}};
  bool truncated = true;
  Sequence all = continuation_sequence(pair, 5, "here", &truncated);
  EXPECT_THAT(all.inputs, ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(all.targets, ElementsAre(-100, -100, -100, 5, 6));
  EXPECT_FALSE(truncated);
  Sequence cut = continuation_sequence(pair, 3, "here", &truncated);
  EXPECT_THAT(cut.inputs, ElementsAre(3, 4, 5));
  EXPECT_THAT(cut.targets, ElementsAre(-100, 5, 6));
  EXPECT_TRUE(truncated);
  // No context at all is left, as in the harness.
  EXPECT_THAT(continuation_sequence(pair, 2, "here").inputs, ElementsAre(4, 5));
  EXPECT_THAT(error_of([&] { continuation_sequence(pair, 1, "f:7"); }),
              testing::AllOf(HasSubstr("f:7"), HasSubstr("window of 1")));
  EXPECT_THAT(error_of([&] { continuation_sequence({{1}, {}}, 0, "f:8"); }), HasSubstr("f:8"));
}

TEST(Windows, WithoutAPrefixTheFirstTokenIsContext) {
  const ByteTokenizer bytes;
  const EncodedPair pair = encode_pair(bytes, "", "ab", std::nullopt);
  EXPECT_THAT(pair.context, ElementsAre('a'));
  EXPECT_THAT(pair.continuation, ElementsAre('b'));
  // White space alone is no context.
  EXPECT_THAT(encode_pair(bytes, "  ", "a", 7).context, ElementsAre(7));
  EXPECT_THAT(encode_pair(bytes, "  ", "a", 7).continuation, ElementsAre(' ', ' ', 'a'));
}

}  // namespace
}  // namespace mdn::evaluate
