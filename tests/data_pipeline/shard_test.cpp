#include "mdn/data/shard.h"

#include <cstring>

#include "mdn/io/hash.h"
#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::HasSubstr;

class Shard : public FolderTest {
 protected:
  std::filesystem::path make(const std::vector<std::vector<int32_t>>& documents,
                             int64_t vocab_size = 256) const {
    ShardFormat format{.token_bytes = token_bytes_for(vocab_size), .vocab_size = vocab_size};
    format.tokenizer.fill(7);
    ShardWriter writer(folder_ / "a.mdnt", format);
    for (const auto& document : documents) {
      writer.add_document(document, 2 * static_cast<int64_t>(document.size()));
    }
    writer.finish();
    return folder_ / "a.mdnt";
  }
};

std::string open_error(std::string_view bytes, Verify verify = Verify::kFull) {
  return error_of([&] { ShardView(as_bytes(bytes), "x", verify); });
}

TEST_F(Shard, ReadsWhatWasWritten) {
  for (const int64_t vocab_size : {1, 256, 257, 65536, 65537, 1 << 30}) {
    const auto last = static_cast<int32_t>(vocab_size - 1);
    const std::vector<std::vector<int32_t>> documents = {{0, last, 0}, {}, {last}, {}, {0, 0}};
    const ShardReader reader(make(documents, vocab_size), Verify::kFull);
    const ShardView& shard = reader.view();
    EXPECT_EQ(shard.tokens(), 6);
    EXPECT_EQ(shard.documents(), 5);
    EXPECT_EQ(shard.text_bytes(), 12);
    EXPECT_EQ(shard.format().vocab_size, vocab_size);
    EXPECT_EQ(shard.format().tokenizer[31], 7);
    std::vector<int64_t> tokens(6);
    shard.read(0, tokens);
    EXPECT_EQ(tokens, (std::vector<int64_t>{0, last, 0, last, 0, 0}));
    std::vector<int64_t> starts;
    for (int64_t d = 0; d <= 5; ++d) {
      starts.push_back(shard.document_start(d));
    }
    EXPECT_EQ(starts, (std::vector<int64_t>{0, 3, 3, 4, 4, 6}));
    std::vector<int64_t> owners;
    for (int64_t at = 0; at < 6; ++at) {
      owners.push_back(shard.document_of(at));
    }
    EXPECT_EQ(owners, (std::vector<int64_t>{0, 0, 0, 2, 4, 4}));
  }
}

TEST_F(Shard, MayBeEmpty) {
  EXPECT_EQ(ShardReader(make({}), Verify::kFull).view().tokens(), 0);
  const ShardReader reader(make({{}, {}}), Verify::kFull);
  EXPECT_EQ(reader.view().documents(), 2);
  EXPECT_THROW(reader.view().document_of(0), Error);
}

TEST_F(Shard, ChecksWhatIsAskedOfIt) {
  const ShardReader reader(make({{1, 2, 3}}), Verify::kFull);
  std::vector<int64_t> out(3);
  EXPECT_THROW(reader.view().read(1, out), Error);
  EXPECT_THROW(reader.view().read(-1, out), Error);
  EXPECT_THROW(reader.view().document_start(2), Error);
  EXPECT_THROW(reader.view().document_start(-1), Error);
  EXPECT_THROW(reader.view().document_of(3), Error);
}

TEST_F(Shard, RefusesTokensOutsideTheVocabulary) {
  ShardWriter writer(folder_ / "a.mdnt", {.token_bytes = 2, .vocab_size = 300, .tokenizer = {}});
  EXPECT_THAT(error_of([&] {
                writer.add_document(std::vector<int32_t>{5, 300}, 1);
              }),
              HasSubstr("token 300 is outside the vocabulary of 300"));
  EXPECT_THROW(writer.add_document(std::vector<int32_t>{-1}, 1), Error);
  EXPECT_THROW(
      ShardWriter(folder_ / "b.mdnt", {.token_bytes = 1, .vocab_size = 257, .tokenizer = {}}),
      Error);
  EXPECT_THROW(
      ShardWriter(folder_ / "b.mdnt", {.token_bytes = 3, .vocab_size = 257, .tokenizer = {}}),
      Error);
  EXPECT_THROW(token_bytes_for(0), Error);
  EXPECT_THROW(token_bytes_for((int64_t{1} << 31) + 1), Error);
}

TEST_F(Shard, IsAbsentUntilItIsFinished) {
  {
    ShardWriter writer(folder_ / "a.mdnt", {});
    writer.add_document(std::vector<int32_t>{1}, 1);
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

// Every byte of a small shard, each of its bits: none can change without being found, and a reader
// that skips the tokens' checksum still never leaves the file.
TEST_F(Shard, FindsEveryFlippedBit) {
  const std::string good = read_file(make({{1, 2, 3}, {}, {4, 5, 6, 7, 250}, {9}}, 251));
  ASSERT_EQ(open_error(good), "");
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ (1 << bit));
      EXPECT_NE(open_error(bad), "") << "byte " << at << ", bit " << bit;
      error_of([&] {
        const ShardView view(as_bytes(bad), "x", Verify::kStructure);
        std::vector<int64_t> out(static_cast<size_t>(view.tokens()));
        view.read(0, out);
        for (int64_t i = 0; i < view.tokens(); ++i) {
          view.document_of(i);
        }
      });
    }
  }
}

TEST_F(Shard, FindsEveryTruncationAndWhatIsAppended) {
  const std::string good = read_file(make({{1, 2, 3}, {4, 5, 6, 7, 8}}));
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(open_error(good.substr(0, size), Verify::kStructure), "") << size << " bytes";
  }
  EXPECT_THAT(open_error(good.substr(0, good.size() - 1)), HasSubstr("cut short"));
  EXPECT_NE(open_error(good + "x"), "");
  EXPECT_THAT(open_error(good + good), HasSubstr("joined with another"));
  EXPECT_NE(open_error(good + std::string(200, '\0')), "");
}

TEST_F(Shard, FindsRegionsOfZeros) {
  const std::string good = read_file(make({std::vector<int32_t>(5000, 1)}));
  for (size_t at = 0; at < good.size(); at += 512) {
    std::string bad = good;
    const size_t length = std::min<size_t>(512, bad.size() - at);
    std::fill_n(bad.begin() + static_cast<std::ptrdiff_t>(at), length, '\0');
    EXPECT_NE(open_error(bad), "") << "from byte " << at;
  }
}

TEST_F(Shard, SaysWhichPieceIsCorrupt) {
  const std::string good = read_file(make({std::vector<int32_t>(3'500'000, 42)}));
  std::string bad = good;
  bad[2'500'000] = 43;
  bad[3'400'000] = 43;
  EXPECT_THAT(open_error(bad), HasSubstr("bytes 2097152 to 3145728 do not match"));
  EXPECT_EQ(open_error(bad, Verify::kStructure), "");
  EXPECT_EQ(open_error(good), "");
}

TEST_F(Shard, NamesForeignFiles) {
  EXPECT_THAT(open_error(""), HasSubstr("too few"));
  EXPECT_THAT(open_error(std::string(1000, 'x')), HasSubstr("does not start with MDNTOKS1"));
  std::string newer = read_file(make({{1}}));
  newer[8] = 2;
  EXPECT_THAT(open_error(newer), HasSubstr("shard version 2; this program reads version 1"));
}

/// Makes all checksums of a changed shard right again: what a hostile file would have.
std::string reseal(std::string bytes) {
  const size_t trailer = bytes.size() - kShardTrailerBytes;
  // All shards here are smaller than a block: one digest before the trailer.
  const size_t digests = trailer - 32;
  const auto put = [&](size_t at, Sha256& hash) {
    const auto digest = hash.digest();
    std::memcpy(bytes.data() + at, digest.data(), digest.size());
  };
  Sha256 block;
  block.update(std::string_view(bytes).substr(0, digests));
  put(digests, block);
  Sha256 whole;
  whole.update(std::string_view(bytes).substr(digests, 32 + 64));
  put(trailer + 64, whole);
  return bytes;
}

void put64(std::string& bytes, size_t at, uint64_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

TEST_F(Shard, RefusesCountsThatDoNotFitTheFile) {
  const std::string good = read_file(make({{1, 2, 3}, {4}}));
  ASSERT_EQ(open_error(reseal(good)), "");
  const size_t trailer = good.size() - kShardTrailerBytes;
  for (const uint64_t n : {uint64_t{0}, uint64_t{5}, uint64_t{1000}, uint64_t{1} << 61,
                           uint64_t{1} << 63, ~uint64_t{0}}) {
    for (const int which : {1, 2, 3}) {
      std::string bad = good;
      if ((which & 1) != 0) {
        put64(bad, trailer, n);
      }
      if ((which & 2) != 0) {
        put64(bad, trailer + 8, n);
      }
      EXPECT_NE(open_error(reseal(bad), Verify::kStructure), "") << n << " in " << which;
    }
  }
}

TEST_F(Shard, RefusesDocumentTablesThatDoNotAscend) {
  const std::string good = read_file(make({{1, 2, 3}, {4}, {5, 6}}));
  const size_t ends = kShardHeaderBytes + 8;
  const struct {
    uint64_t first, second, third;
  } cases[] = {{4, 3, 6}, {3, 4, 5}, {3, 7, 6}, {3, 4, 7}, {~uint64_t{0}, 4, 6}, {0, 0, 0}};
  for (const auto& wrong : cases) {
    std::string bad = good;
    put64(bad, ends, wrong.first);
    put64(bad, ends + 8, wrong.second);
    put64(bad, ends + 16, wrong.third);
    EXPECT_THAT(open_error(reseal(bad)), HasSubstr("corrupt document table"));
  }
  std::string other = good;
  put64(other, ends, 0);
  put64(other, ends + 8, 6);
  EXPECT_EQ(open_error(reseal(other)), "");  // another valid division
}

TEST_F(Shard, RefusesIdsOutsideTheVocabularyWhenTheyAreRead) {
  std::string bad = read_file(make({{1, 2, 3}}, 100));
  bad[kShardHeaderBytes + 1] = 100;
  bad = reseal(bad);
  const ShardView view(as_bytes(bad), "x", Verify::kFull);
  std::vector<int64_t> one(1);
  view.read(0, one);
  EXPECT_EQ(one[0], 1);
  std::vector<int64_t> all(3);
  EXPECT_THAT(error_of([&] { view.read(0, all); }), HasSubstr("token 100 among 0 to 3"));
}

}  // namespace
}  // namespace mdn::data
