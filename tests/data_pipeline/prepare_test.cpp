#include "mdn/data/prepare.h"

#include <omp.h>

#include <set>

#include "mdn/data/batches.h"
#include "mdn/io/hash.h"
#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::HasSubstr;

/// Bytes, with a bos of 256 and an eos of 257 (or one token for both).
class MarkedBytes : public ByteTokenizer {
 public:
  explicit MarkedBytes(bool one_mark = false) : one_mark_(one_mark) {}
  int32_t vocab_size() const override { return 258; }
  std::optional<int32_t> bos_id() const override { return one_mark_ ? 257 : 256; }
  std::optional<int32_t> eos_id() const override { return 257; }

 private:
  bool one_mark_;
};

class Prepare : public FolderTest {
 protected:
  PrepareOptions options(std::vector<std::filesystem::path> sources) const {
    PrepareOptions options;
    options.sources = std::move(sources);
    options.output = folder_ / "data";
    options.replace = true;
    return options;
  }
  static std::vector<int64_t> tokens_of(const TokenSplit& split) {
    std::vector<int64_t> tokens(static_cast<size_t>(split.tokens()));
    split.read(0, tokens);
    return tokens;
  }
  static std::string text_of(const TokenSplit& split) {
    std::string text;
    for (const int64_t token : tokens_of(split)) {
      text += static_cast<char>(token);
    }
    return text;
  }
  std::string lines(int n) const {
    std::string text;
    for (int i = 0; i < n; ++i) {
      text += fmt::format("{{\"text\": \"document {} {}\"}}\n", i,
                          std::string(static_cast<size_t>(i % 7), 'x'));
    }
    return text;
  }
  const ByteTokenizer bytes_;
};

TEST_F(Prepare, OneTextIsDividedByPosition) {
  std::string text;
  for (int i = 0; i < 1001; ++i) {
    text += static_cast<char>('a' + i % 26);
  }
  const Manifest manifest = prepare(bytes_, "bytes", options({write("a.txt", text)}));
  EXPECT_EQ(manifest.split_by, "position");
  const TokenDataset data(folder_ / "data");
  // int(0.9 * 1001), as nanoGPT cuts.
  EXPECT_EQ(text_of(data.train()), text.substr(0, 900));
  EXPECT_EQ(text_of(data.val()), text.substr(900));
  const SourceInfo& source = data.manifest().sources.at(0);
  EXPECT_EQ(source.sha256, sha256_hex(text));
  EXPECT_EQ(source.text_bytes, 1001);
  EXPECT_EQ(source.documents, 1);
  EXPECT_EQ(data.manifest().tokenizer_hash, bytes_.hash());
  EXPECT_EQ(load_tokenizer(folder_ / "data")->hash(), bytes_.hash());
}

TEST_F(Prepare, PositionNeverCutsACharacter) {
  for (int length = 2; length < 40; ++length) {
    std::string text;
    for (int i = 0; i < length; ++i) {
      text += "\xf0\x9f\x8d\x8e";
    }
    PrepareOptions o = options({write("a.txt", text)});
    o.val_fraction = 0.37;
    prepare(bytes_, "bytes", o);
    const TokenDataset data(folder_ / "data");
    EXPECT_EQ(data.train().tokens() % 4, 0);
    EXPECT_EQ(text_of(data.train()) + text_of(data.val()), text);
  }
}

TEST_F(Prepare, DocumentsAreDividedByTheirTextAndSeed) {
  const auto held_out = [&](const std::string& content, int64_t seed) {
    PrepareOptions o = options({write("a.jsonl", content)});
    o.seed = seed;
    o.val_fraction = 0.3;
    prepare(bytes_, "bytes", o);
    const TokenDataset data(folder_ / "data");
    EXPECT_EQ(data.manifest().split_by, "document");
    std::set<std::string> texts;
    const std::string text = text_of(data.val());
    for (int64_t d = 0; d < data.val().documents(); ++d) {
      const auto start = static_cast<size_t>(data.val().document_start(d));
      texts.insert(
          text.substr(start, static_cast<size_t>(data.val().document_start(d + 1)) - start));
    }
    return texts;
  };
  const auto first = held_out(lines(1000), 0);
  // Binomial with n = 1000, p = 0.3: a deviation of 14.5, five of them allowed.
  EXPECT_NEAR(static_cast<double>(first.size()), 300, 73);
  EXPECT_NE(held_out(lines(1000), 1), first);
  // What another document is, or how often it comes, changes nothing for the others.
  const auto of_half = held_out(lines(500), 0);
  EXPECT_TRUE(std::includes(first.begin(), first.end(), of_half.begin(), of_half.end()));
  EXPECT_EQ(held_out(lines(1000) + lines(1000), 0), first);
}

TEST_F(Prepare, NothingIsLostOrReordered) {
  PrepareOptions o = options({write("a.jsonl", lines(300)), write("b.jsonl", lines(400))});
  o.shard_tokens = 1000;
  o.val_fraction = 0.0;
  const Manifest manifest = prepare(bytes_, "bytes", o);
  EXPECT_GT(manifest.train.shards.size(), 5U);
  for (const ShardInfo& shard : manifest.train.shards) {
    EXPECT_LE(shard.tokens, 1000);
  }
  const TokenDataset data(folder_ / "data");
  EXPECT_EQ(data.train().documents(), 700);
  EXPECT_EQ(data.val().documents(), 0);
  std::string expected;
  for (const int n : {300, 400}) {
    for (int i = 0; i < n; ++i) {
      expected += fmt::format("document {} {}", i, std::string(static_cast<size_t>(i % 7), 'x'));
    }
  }
  EXPECT_EQ(text_of(data.train()), expected);
}

TEST_F(Prepare, MarksDocumentsAndNotCuts) {
  const auto source = write("a.txt", "abcdefghij");
  prepare(MarkedBytes(), "marked", options({source}));
  {
    const TokenDataset data(folder_ / "data");
    EXPECT_EQ(tokens_of(data.train()),
              (std::vector<int64_t>{256, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'}));
    EXPECT_EQ(tokens_of(data.val()), (std::vector<int64_t>{'j', 257}));
    EXPECT_TRUE(data.manifest().bos && data.manifest().eos);
    EXPECT_EQ(data.val().text_bytes(), 1);
  }
  prepare(MarkedBytes(true), "marked", options({source}));
  EXPECT_EQ(tokens_of(TokenDataset(folder_ / "data").train()).front(), 'a');
  EXPECT_EQ(tokens_of(TokenDataset(folder_ / "data").val()).back(), 257);
  PrepareOptions o = options({write("b.jsonl", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n")});
  o.eos = false;
  o.val_fraction = 0.0;
  prepare(MarkedBytes(), "marked", o);
  EXPECT_EQ(tokens_of(TokenDataset(folder_ / "data").train()),
            (std::vector<int64_t>{256, 'a', 256, 'b'}));
}

TEST_F(Prepare, IsTheSameForAnyNumberOfThreads) {
  const auto source = write("a.jsonl", lines(2000));
  std::string first;
  const int threads = omp_get_max_threads();
  for (const int n : {1, 2, 5}) {
    omp_set_num_threads(n);
    prepare(bytes_, "bytes", options({source}));
    std::string all = read_file(folder_ / "data" / "manifest.json");
    all += read_file(folder_ / "data" / "train-00000.mdnt");
    if (first.empty()) {
      first = all;
    }
    EXPECT_EQ(all, first);
  }
  omp_set_num_threads(threads);
}

TEST_F(Prepare, CountsEmptyDocuments) {
  const std::string content = "{\"text\": \"\"}\n{\"text\": \"a\"}\n{\"text\": \"\"}\n";
  PrepareOptions o = options({write("a.jsonl", content)});
  o.val_fraction = 0.0;
  EXPECT_EQ(prepare(bytes_, "bytes", o).empty_documents, 2);
  EXPECT_EQ(TokenDataset(folder_ / "data").train().documents(), 1);
}

TEST_F(Prepare, RefusesEmptySplitsWithAdvice) {
  const auto error = [&](const PrepareOptions& o) {
    return error_of([&] { prepare(bytes_, "bytes", o); });
  };
  EXPECT_THAT(error(options({write("a.txt", "")})), HasSubstr("no text"));
  PrepareOptions o = options({write("a.jsonl", lines(2))});
  o.val_fraction = 1e-9;
  EXPECT_THAT(error(o), HasSubstr("--split position"));
  o.val_fraction = 1.0 - 1e-12;
  EXPECT_THAT(error(o), HasSubstr("fell into the held-out split"));
  o.val_fraction = 1.0;
  EXPECT_THAT(error(o), HasSubstr("allowed is [0, 1)"));
  EXPECT_THAT(error(options({write("b.txt", "x")})), HasSubstr("fell into the held-out split"));
  EXPECT_THAT(error(options({})), HasSubstr("no source files"));
  // And leaves nothing behind.
  EXPECT_FALSE(std::filesystem::exists(folder_ / "data"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / ".data.partial"));
}

TEST_F(Prepare, ReportsProgress) {
  PrepareOptions o = options({write("a.txt", std::string(1000, 'a'))});
  PrepareProgress last;
  o.progress = [&](const PrepareProgress& progress) { last = progress; };
  prepare(bytes_, "bytes", o);
  EXPECT_EQ(last.file_bytes, 1000);
  EXPECT_EQ(last.total_file_bytes, 1000);
  EXPECT_EQ(last.text_bytes, 1000);
  EXPECT_EQ(last.tokens, 1000);
  EXPECT_EQ(last.documents, 1);
}

TEST_F(Prepare, SplitNames) {
  for (const auto split : {SplitBy::kAuto, SplitBy::kDocument, SplitBy::kPosition}) {
    EXPECT_EQ(split_by_from_name(name_of(split)), split);
  }
  EXPECT_THROW(split_by_from_name("line"), Error);
}

}  // namespace
}  // namespace mdn::data
