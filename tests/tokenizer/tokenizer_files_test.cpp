#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "mdn/io/file.h"
#include "mdn/tokenizer/bpe_tokenizer.h"
#include "mdn/tokenizer/tokenizer.h"
#include "mdn/tokenizer/utf8.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string all_bytes() {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

TEST(ByteTokenizer, IdsAreTheBytes) {
  const ByteTokenizer tokenizer;
  EXPECT_EQ(tokenizer.vocab_size(), 256);
  std::vector<int32_t> ids = tokenizer.encode(all_bytes());
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(ids[static_cast<size_t>(byte)], byte);
    EXPECT_EQ(tokenizer.token_id(std::string(1, static_cast<char>(byte))), byte);
  }
  EXPECT_EQ(tokenizer.decode(ids), all_bytes());
  EXPECT_EQ(tokenizer.token_id("ab"), std::nullopt);
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
  EXPECT_EQ(tokenizer.eos_id(), std::nullopt);
  EXPECT_THAT(error_of([&] { tokenizer.token_bytes(256); }), HasSubstr("token id 256 is outside"));
  EXPECT_THAT(error_of([&] { tokenizer.token_bytes(-1); }), HasSubstr("token id -1 is outside"));
}

TEST(ByteTokenizer, FileIsAByteLevelBpeWithoutMerges) {
  const ScratchFolder folder;
  const ByteTokenizer tokenizer;
  tokenizer.save(folder.path());
  // The form is fixed: checkpoints and shards carry its hash.
  EXPECT_EQ(read_file(folder / kTokenizerFile),
            read_file(std::filesystem::path(MDN_TEST_DATA) / "tokenizers/bytes/tokenizer.json"));
  const auto loaded = load_tokenizer(folder.path());
  EXPECT_NE(dynamic_cast<const ByteTokenizer*>(loaded.get()), nullptr);
  EXPECT_EQ(loaded->hash(), tokenizer.hash());
  // Read as what it says it is, it does the same.
  const BpeTokenizer bpe(ByteTokenizer::json(), "bytes");
  EXPECT_TRUE(bpe.is_plain_bytes());
  std::mt19937 rng(4);
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (unsigned n = rng() % 50; n > 0; --n) {
      text += static_cast<char>(rng() % 4 == 0 ? ' ' : rng());
    }
    EXPECT_EQ(bpe.encode(text), tokenizer.encode(text));
  }
}

TEST(LoadTokenizer, ErrorsNameThePath) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of([&] { load_tokenizer(folder.path()); }),
              HasSubstr((folder / kTokenizerFile).string() + ": cannot open: No such file"));
  write_file_atomically(folder / kTokenizerFile, "[]");
  EXPECT_THAT(error_of([&] { load_tokenizer(folder.path()); }),
              HasSubstr("tokenizer.json: is an array of 0 entries; a JSON object is needed"));
}

TEST(StreamDecoder, GivesOnlyWholeCharacters) {
  const ByteTokenizer tokenizer;
  StreamDecoder stream(tokenizer);
  const auto push = [&](const std::string& bytes) {
    std::vector<std::string> parts;
    for (const int32_t id : tokenizer.encode(bytes)) {
      parts.push_back(stream.push(id));
    }
    return parts;
  };
  EXPECT_THAT(push("aé中😀"), ElementsAre("a", "", "é", "", "", "中", "", "", "", "😀"));
  // A beginning that cannot go on is given out with what shows it, byte for byte.
  EXPECT_THAT(push("\xE4\xB8z"), ElementsAre("", "", "\xE4\xB8z"));
  EXPECT_THAT(push("\xF0\x9F\xC3\xA9"), ElementsAre("", "", "\xF0\x9F", "é"));
  EXPECT_THAT(push("\xFF\x80"), ElementsAre("\xFF", "\x80"));
  EXPECT_THAT(push("\xE4\xB8"), ElementsAre("", ""));
  EXPECT_EQ(stream.finish(), "\xE4\xB8");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_THAT(push("b"), ElementsAre("b"));
}

TEST(StreamDecoder, JoinedPartsAreTheBytes) {
  const ByteTokenizer tokenizer;
  std::mt19937 rng(8);
  const std::string parts[] = {"a", "é", "中", "😀", "\xFF", "\xE4\xB8", "\x80", "\xF0\x9F\x98"};
  for (int i = 0; i < 500; ++i) {
    std::string text;
    for (unsigned n = rng() % 15; n > 0; --n) {
      text += parts[rng() % std::size(parts)];
    }
    const bool valid = utf8_replace_invalid(text) == text;
    StreamDecoder stream(tokenizer);
    std::string joined;
    for (const int32_t id : tokenizer.encode(text)) {
      const std::string part = stream.push(id);
      if (valid) {
        EXPECT_EQ(utf8_replace_invalid(part), part);
      }
      joined += part;
    }
    EXPECT_EQ(joined + stream.finish(), text);
  }
}

}  // namespace
}  // namespace mdn
