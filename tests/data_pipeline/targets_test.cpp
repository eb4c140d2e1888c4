// Data with targets of its own, and rows of whole documents.
#include <set>

#include "mdn/data/batches.h"
#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int32_t kNone = static_cast<int32_t>(kIgnoredTarget);

class TargetsTest : public FolderTest {
 protected:
  struct Document {
    std::vector<int32_t> tokens, targets;
  };

  void write_data(const std::vector<Document>& train, const std::vector<Document>& val,
                  bool targets = true, int64_t shard_tokens = 100) {
    constexpr int64_t kVocab = 256;  // targets then need 257 ids and another width
    ShardFormat format{.token_bytes = token_bytes_for(kVocab), .vocab_size = kVocab};
    DatasetWriter writer(
        folder_ / "data",
        {.format = format, .shard_tokens = shard_tokens, .targets = targets, .replace = true});
    for (const Document& d : train) {
      writer.add_train(d.tokens, 1, targets ? d.targets : std::vector<int32_t>());
    }
    for (const Document& d : val) {
      writer.add_val(d.tokens, 1, targets ? d.targets : std::vector<int32_t>());
    }
    Manifest manifest;
    manifest.tokenizer_name = "test";
    manifest.tokenizer_hash = std::string(64, '0');
    manifest.vocab_size = kVocab;
    manifest.split_by = "document";
    writer.finish(manifest);
  }
  TokenDataset open() const { return TokenDataset(folder_ / "data"); }

  const std::vector<Document> documents_ = {{{1, 2, 3}, {kNone, 255, 0}},
                                            {{4, 5}, {9, kNone}},
                                            {{6, 7, 8, 9}, {kNone, kNone, kNone, 200}}};
};

TEST_F(TargetsTest, AreReadAsWritten) {
  write_data(documents_, {{{10}, {11}}}, true, 5);  // the third document starts another shard
  const TokenDataset data = open();
  EXPECT_TRUE(data.train().has_targets());
  std::vector<int64_t> targets(9);
  data.train().read_targets(0, targets);
  EXPECT_THAT(targets, ElementsAre(-100, 255, 0, 9, -100, -100, -100, -100, 200));
  std::vector<int64_t> part(3);
  data.train().read_targets(4, part);
  EXPECT_THAT(part, ElementsAre(-100, -100, -100));
  EXPECT_EQ(data.manifest().train.shards.size(), 2U);
  EXPECT_EQ(data.manifest().train.shards[1].targets_file, "train-00001.targets.mdnt");
}

TEST_F(TargetsTest, ChangeTheDigest) {
  write_data(documents_, {});
  const std::string digest = open().train().digest();
  auto other = documents_;
  other[2].targets[0] = 1;
  write_data(other, {});
  EXPECT_NE(open().train().digest(), digest);
}

TEST_F(TargetsTest, MustBelongToTheirTokens) {
  write_data(documents_, {});
  const auto targets = folder_ / "data" / "train-00000.targets.mdnt";
  const std::string kept = read_file(targets);
  auto other = documents_;
  other[0].targets[1] = 3;
  write_data(other, {});
  write_file_atomically(targets, kept);
  EXPECT_THAT(error_of([&] { open(); }), HasSubstr("train-00000.targets.mdnt"));
  std::filesystem::remove(targets);
  EXPECT_THAT(error_of([&] { open(); }), HasSubstr("train-00000.targets.mdnt"));
}

TEST_F(TargetsTest, OneATokenOrNone) {
  EXPECT_THAT(error_of([&] { write_data({{{1, 2}, {1}}}, {}); }), HasSubstr("2 tokens with 1"));
  EXPECT_THAT(error_of([&] { write_data({{{1}, {257}}}, {}); }), HasSubstr("token 257"));
  write_data(documents_, {}, false);
  const TokenDataset data = open();
  EXPECT_FALSE(data.train().has_targets());
  std::vector<int64_t> out(1);
  EXPECT_THAT(error_of([&] { data.train().read_targets(0, out); }), HasSubstr("no targets"));
}

TEST_F(TargetsTest, RowsAreDocuments) {
  write_data(documents_, {});
  const TokenDataset data = open();
  Batches batches(data.train(), {.order = RowOrder::kDocuments, .rows = 3, .length = 5, .seed = 4});
  EXPECT_EQ(batches.rows_per_epoch(), 3);
  std::set<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 20; ++epoch) {
    const Batch batch = batches.next();
    EXPECT_TRUE(batch.cu_seqlens.empty());
    std::vector<int64_t> order;
    for (size_t r = 0; r < 3; ++r) {
      const int64_t first = batch.inputs[5 * r];
      order.push_back(first);
      const Document& d = documents_[first == 1 ? 0 : first == 4 ? 1 : 2];
      for (size_t t = 0; t < 5; ++t) {
        const bool inside = t < d.tokens.size();
        EXPECT_EQ(batch.inputs[5 * r + t], inside ? d.tokens[t] : 0);
        EXPECT_EQ(batch.targets[5 * r + t], inside ? d.targets[t] : kNone);
      }
    }
    orders.insert(order);
    std::sort(order.begin(), order.end());
    EXPECT_THAT(order, ElementsAre(1, 4, 6));  // each once an epoch
  }
  EXPECT_GT(orders.size(), 2U);
}

TEST_F(TargetsTest, PositionsResume) {
  write_data(documents_, {});
  const TokenDataset data = open();
  const BatchOptions options{.order = RowOrder::kDocuments, .rows = 2, .length = 4, .seed = 1};
  Batches one(data.train(), options);
  one.next();
  one.next();
  const Json saved = one.position().to_json();
  Batches two(data.train(), options);
  two.seek(Position::from_json(JsonObject(saved, "saved")));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(one.next().inputs, two.next().inputs);
  }
}

// Without targets of their own documents predict their next token.
TEST_F(TargetsTest, DocumentsWithoutTargets) {
  write_data(documents_, documents_, false);
  const TokenDataset data = open();
  EvaluationBatches batches(data.val(), {.rows = 8, .length = 4, .documents = true});
  EXPECT_EQ(batches.total_rows(), 3);
  Batch batch;
  ASSERT_TRUE(batches.next(batch));
  EXPECT_THAT(batch.inputs, ElementsAre(1, 2, 3, 0, 4, 5, 0, 0, 6, 7, 8, 9));
  EXPECT_THAT(batch.targets, ElementsAre(2, 3, -100, -100, 5, -100, -100, -100, 7, 8, 9, -100));
  EXPECT_FALSE(batches.next(batch));
}

TEST_F(TargetsTest, OtherRowsWouldCutDocuments) {
  write_data(documents_, documents_);
  const TokenDataset data = open();
  EXPECT_THAT(error_of([&] { Batches(data.train(), {.rows = 1, .length = 2}); }),
              HasSubstr("order documents"));
  EXPECT_THAT(error_of([&] { EvaluationBatches(data.val(), {.rows = 1, .length = 2}); }),
              HasSubstr("order documents"));
  EXPECT_THAT(error_of([&] {
                Batches(data.train(), {.order = RowOrder::kDocuments, .rows = 1, .length = 3});
              }),
              HasSubstr("document 2 has 4 tokens"));
}

}  // namespace
}  // namespace mdn::data
