#include "mdn/data/batches.h"

#include <omp.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/data_pipeline/fixtures.h"

namespace mdn::data {
namespace {

using testing::HasSubstr;

class Rows : public FolderTest {
 protected:
  /// All tokens differ, so a token's value says where it stood: document d's i-th is start[d] + i.
  const TokenSplit& split_of(const std::vector<int64_t>& lengths, int64_t shard_tokens = 1000) {
    const auto documents = counted_documents(lengths);
    next_.clear();
    for (const auto& document : documents) {
      for (size_t i = 0; i < document.size(); ++i) {
        next_.push_back(i + 1 < document.size() ? document[i + 1] : -1);
      }
    }
    write_dataset(folder_ / "data", documents, {}, 65536, shard_tokens);
    dataset_ = std::make_unique<TokenDataset>(folder_ / "data");
    return dataset_->train();
  }

  /// What the rows of a batch must be whatever their order: see Batch.
  void check_separate(const Batch& batch) const {
    const auto total = batch.rows * batch.length;
    ASSERT_EQ(static_cast<int64_t>(batch.inputs.size()), total);
    ASSERT_EQ(static_cast<int64_t>(batch.targets.size()), total);
    const auto& cu = batch.cu_seqlens;
    ASSERT_GE(cu.size(), 2U);
    EXPECT_EQ(cu.front(), 0);
    EXPECT_EQ(cu.back(), total);
    for (size_t s = 0; s + 1 < cu.size(); ++s) {
      ASSERT_LT(cu[s], cu[s + 1]);
      EXPECT_EQ(cu[s] / batch.length, (cu[s + 1] - 1) / batch.length) << "a sequence over two rows";
      for (int64_t i = cu[s]; i < cu[s + 1]; ++i) {
        const int64_t target = batch.targets[static_cast<size_t>(i)];
        const int64_t next = next_.at(static_cast<size_t>(batch.inputs[static_cast<size_t>(i)]));
        if (target != kIgnoredTarget) {
          EXPECT_EQ(target, next);
        }
        // Within a sequence the next input is the next token of the same document: no leak.
        if (i + 1 < cu[s + 1] && target != kIgnoredTarget) {
          EXPECT_EQ(batch.inputs[static_cast<size_t>(i + 1)], target);
        }
      }
    }
  }

  std::vector<int64_t> next_;  // of each token: the one after it in its document, or -1
  std::unique_ptr<TokenDataset> dataset_;
};

Position with_row(Position position, int64_t epoch, int64_t row) {
  position.epoch = epoch;
  position.row = row;
  return position;
}

struct Shape {
  std::vector<int64_t> lengths;
  int64_t length;  // T
  int64_t shard_tokens;
};

std::vector<Shape> shapes() {
  std::mt19937 random(5);
  std::vector<int64_t> many;
  for (int i = 0; i < 1500; ++i) {
    many.push_back(static_cast<int64_t>(random() % 13));
  }
  return {{{1}, 1, 37},
          {{1}, 7, 37},
          {{5}, 256, 37},
          {{64}, 8, 37},
          {{65}, 8, 37},
          {{0, 3, 0, 0, 1, 1, 9, 0}, 4, 5},
          {{100, 1, 1, 1, 250, 0, 33}, 16, 37},
          {{1, 1, 1, 1, 1, 1, 1}, 3, 4},
          {many, 10, 2000},
          {many, 1000, 2000}};
}

// Over an epoch: each token is an input once; each is a target once, but for the first of each
// document, which no token of its document precedes.
TEST_F(Rows, CoverEveryTokenOnceAnEpoch) {
  for (const Shape& shape : shapes()) {
    for (const bool separate : {true, false}) {
      const TokenSplit& split = split_of(shape.lengths, shape.shard_tokens);
      Batches batches(split, {.order = RowOrder::kPacked,
                              .rows = 1,
                              .length = shape.length,
                              .separate_documents = separate,
                              .seed = 3});
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        const auto N = static_cast<size_t>(split.tokens());
        std::vector<int> inputs(N, 0);
        std::vector<int> targets(N, 0);
        int64_t padding = 0;
        for (int64_t row = 0; row < batches.rows_per_epoch(); ++row) {
          ASSERT_EQ(batches.position().epoch, epoch);
          ASSERT_EQ(batches.position().row, row);
          const Batch batch = batches.next();
          if (separate) {
            check_separate(batch);
          } else {
            EXPECT_TRUE(batch.cu_seqlens.empty());
          }
          for (size_t i = 0; i < batch.inputs.size(); ++i) {
            const bool ends = next_[static_cast<size_t>(batch.inputs[i])] == -1;
            if (batch.targets[i] != kIgnoredTarget) {
              ++inputs[static_cast<size_t>(batch.inputs[i])];
              ++targets[static_cast<size_t>(batch.targets[i])];
            } else if (separate && ends && inputs[static_cast<size_t>(batch.inputs[i])] == 0) {
              ++inputs[static_cast<size_t>(batch.inputs[i])];
            } else {
              EXPECT_EQ(batch.inputs[i], 0);
              ++padding;
            }
          }
        }
        EXPECT_EQ(padding, batches.rows_per_epoch() * shape.length - split.tokens());
        EXPECT_EQ(std::count(inputs.begin(), inputs.end(), 1), split.tokens());
        for (int64_t d = 0; d < split.documents(); ++d) {
          for (int64_t i = split.document_start(d); i < split.document_start(d + 1); ++i) {
            const bool predicted = !separate || i > split.document_start(d);
            EXPECT_EQ(targets[static_cast<size_t>(i)], predicted ? 1 : 0) << "token " << i;
          }
        }
      }
      EXPECT_EQ(batches.position().epoch, 3);
    }
  }
}

// The rotation of the ring: over 40 epochs a row of 100 starts at many of its 100 possible places.
TEST_F(Rows, CutLongDocumentsAtOtherPlacesEachEpoch) {
  const TokenSplit& split = split_of({1000});
  Batches batches(split, {.rows = 1, .length = 100, .seed = 1});
  std::map<int64_t, int> cuts;
  for (int epoch = 0; epoch < 40; ++epoch) {
    ++cuts[batches.next().inputs.front() % 100];
    for (int row = 1; row < 10; ++row) {
      batches.next();
    }
  }
  EXPECT_GT(cuts.size(), 20U);
}

TEST_F(Rows, ComeInAnotherOrderEachEpochAndSeed) {
  const TokenSplit& split = split_of(std::vector<int64_t>(100, 10));
  const auto epoch_of = [&](int64_t seed, int64_t epoch) {
    Batches batches(split, {.rows = 100, .length = 10, .seed = seed});
    batches.seek(with_row(batches.position(), epoch, 0));
    return batches.next().inputs;
  };
  EXPECT_EQ(epoch_of(1, 0), epoch_of(1, 0));
  EXPECT_NE(epoch_of(1, 0), epoch_of(1, 1));
  EXPECT_NE(epoch_of(1, 0), epoch_of(2, 0));
  EXPECT_NE(epoch_of(1, 1), epoch_of(2, 0));
}

// A document's neighbours in a row change from epoch to epoch: documents are shuffled, not rows
// alone. Two of 200 documents follow each other by chance in 1 of 200 epochs.
TEST_F(Rows, ShuffleDocumentsAndNotRowsAlone) {
  const TokenSplit& split = split_of(std::vector<int64_t>(200, 5));
  Batches batches(split, {.rows = 100, .length = 10, .separate_documents = false, .seed = 1});
  int64_t in_order = 0;
  int64_t joins = 0;
  for (int epoch = 0; epoch < 20; ++epoch) {
    const Batch batch = batches.next();
    for (size_t i = 0; i < batch.inputs.size(); ++i) {
      if (batch.inputs[i] % 5 == 4) {
        ++joins;
        in_order += batch.targets[i] == batch.inputs[i] + 1 ? 1 : 0;
      }
    }
  }
  EXPECT_EQ(joins, 20 * 200);
  // Poisson with mean 20: beyond 50 is 6 deviations, and the seed is fixed.
  EXPECT_LT(in_order, 50);
}

TEST_F(Rows, ResumeWithTheSameBatches) {
  const TokenSplit& split = split_of({40, 3, 1, 0, 77, 12}, 50);
  for (const RowOrder order : {RowOrder::kPacked, RowOrder::kWindows}) {
    for (const bool separate : {true, false}) {
      const BatchOptions options{
          .order = order, .rows = 3, .length = 8, .separate_documents = separate, .seed = 11};
      Batches all(split, options);
      std::vector<Batch> expected;
      std::vector<std::string> saved;
      for (int i = 0; i < 30; ++i) {
        saved.push_back(all.position().to_json().dump());
        expected.push_back(all.next());
      }
      for (size_t from = 0; from < saved.size(); ++from) {
        Batches resumed(split, options);
        const Json json = parse_json(saved[from], "position");
        resumed.seek(Position::from_json(JsonObject(json, "position")));
        for (size_t i = from; i < std::min(from + 5, saved.size()); ++i) {
          const Batch batch = resumed.next();
          EXPECT_EQ(batch.inputs, expected[i].inputs);
          EXPECT_EQ(batch.targets, expected[i].targets);
          EXPECT_EQ(batch.cu_seqlens, expected[i].cu_seqlens);
        }
      }
    }
  }
}

TEST_F(Rows, DoNotDependOnRowsABatchOrThreads) {
  const TokenSplit& split = split_of({40, 3, 1, 0, 77, 12}, 50);
  const auto first_rows = [&](int64_t rows) {
    Batches batches(split, {.rows = rows, .length = 8, .seed = 11});
    std::vector<int64_t> inputs;
    while (inputs.size() < 60 * 8) {
      const Batch batch = batches.next();
      inputs.insert(inputs.end(), batch.inputs.begin(), batch.inputs.end());
    }
    return inputs;
  };
  const auto one = first_rows(1);
  const int threads = omp_get_max_threads();
  for (const int n : {1, 3, 5}) {
    omp_set_num_threads(n);
    for (const int64_t rows : {4, 12, 30}) {
      EXPECT_EQ(first_rows(rows), one);
    }
  }
  omp_set_num_threads(threads);
}

TEST_F(Rows, WindowsAreUniformOverTheText) {
  const TokenSplit& split = split_of({30, 0, 70}, 50);
  Batches batches(split, {.order = RowOrder::kWindows, .rows = 90, .length = 10, .seed = 4});
  std::vector<int> starts(90, 0);
  constexpr int kBatches = 100;
  for (int b = 0; b < kBatches; ++b) {
    const Batch batch = batches.next();
    EXPECT_TRUE(batch.cu_seqlens.empty());
    EXPECT_EQ(batch.predicted(), 900);
    for (size_t r = 0; r < 90; ++r) {
      const int64_t start = batch.inputs[r * 10];
      ++starts.at(static_cast<size_t>(start));
      for (int64_t i = 0; i < 10; ++i) {
        EXPECT_EQ(batch.inputs[r * 10 + static_cast<size_t>(i)], start + i);
        EXPECT_EQ(batch.targets[r * 10 + static_cast<size_t>(i)], start + i + 1);
      }
    }
  }
  // Chi-squared with 89 degrees of freedom: 5 deviations, for a fixed seed.
  double chi = 0.0;
  for (const int c : starts) {
    chi += (c - kBatches) * (c - kBatches) / static_cast<double>(kBatches);
  }
  EXPECT_NEAR(chi, 89, 5 * std::sqrt(2.0 * 89));
}

TEST_F(Rows, RefuseWhatCannotBe) {
  const TokenSplit& split = split_of({10, 6});
  const auto error = [&](BatchOptions options) {
    return error_of([&] { Batches(split, options); });
  };
  EXPECT_THAT(error({.order = RowOrder::kWindows, .length = 16}), HasSubstr("do not fit the 16"));
  EXPECT_EQ(error({.order = RowOrder::kWindows, .length = 15}), "");
  EXPECT_EQ(error({.order = RowOrder::kPacked, .length = 1000}), "");
  EXPECT_THAT(error({.rows = 0}), HasSubstr("0 rows a batch"));
  EXPECT_THAT(error({.length = 0}), HasSubstr("rows of 0 tokens"));
  EXPECT_THAT(error({.length = int64_t{1} << 40}), HasSubstr("at most"));
  EXPECT_THAT(error({.seed = -1}), HasSubstr("seed of -1"));
  EXPECT_THAT(error_of([&] { Batches(dataset_->val(), {}); }), HasSubstr("--val-fraction"));
  EXPECT_THAT(error_of([&] { EvaluationBatches(dataset_->val(), {}); }), HasSubstr("no tokens"));
  EXPECT_THROW(row_order_from_name("random"), Error);
  EXPECT_EQ(row_order_from_name(name_of(RowOrder::kWindows)), RowOrder::kWindows);
}

TEST_F(Rows, RefusePositionsOfOtherRuns) {
  const TokenSplit& split = split_of({10, 6});
  Batches batches(split, {.rows = 1, .length = 4, .seed = 9});
  const Position good = batches.position();
  const auto error = [&](auto change) {
    Position position = good;
    change(position);
    return error_of([&] { batches.seek(position); });
  };
  EXPECT_EQ(error([](Position&) {}), "");
  EXPECT_THAT(error([](Position& p) { p.data[0] ^= 1; }), HasSubstr("other data"));
  EXPECT_THAT(error([](Position& p) { p.seed = 8; }), HasSubstr("seed 8, this run of 9"));
  EXPECT_THAT(error([](Position& p) { p.length = 5; }), HasSubstr("rows of 5 tokens"));
  EXPECT_THAT(error([](Position& p) { p.order = "windows"; }), HasSubstr("windows rows"));
  EXPECT_THAT(error([](Position& p) { p.separate_documents = false; }), HasSubstr("joined"));
  EXPECT_THAT(error([](Position& p) { p.row = 4; }), HasSubstr("an epoch has 4 rows"));
  EXPECT_THAT(error([](Position& p) { p.row = -1; }), HasSubstr("row -1"));
  EXPECT_THAT(error([](Position& p) { p.epoch = -1; }), HasSubstr("epoch -1"));

  Json json = good.to_json();
  EXPECT_EQ(Position::from_json(JsonObject(json, "p")), good);
  json["rank"] = 1;
  EXPECT_THAT(error_of([&] { Position::from_json(JsonObject(json, "p")); }),
              HasSubstr("unknown key \"rank\""));
  json.erase("rank");
  json.erase("row");
  EXPECT_THAT(error_of([&] { Position::from_json(JsonObject(json, "p")); }),
              HasSubstr("key \"row\" is missing"));
  json["row"] = 1.5;
  EXPECT_THROW(Position::from_json(JsonObject(json, "p")), Error);
}

TEST_F(Rows, EvaluationPredictsEveryTokenOnce) {
  for (const Shape& shape : shapes()) {
    for (const bool separate : {true, false}) {
      const TokenSplit& split = split_of(shape.lengths, shape.shard_tokens);
      EvaluationBatches batches(
          split, {.rows = 3, .length = shape.length, .separate_documents = separate});
      std::vector<int> targets(static_cast<size_t>(split.tokens()), 0);
      int64_t rows = 0;
      Batch batch;
      while (batches.next(batch)) {
        rows += batch.rows;
        EXPECT_LE(batch.rows, 3);
        if (separate) {
          check_separate(batch);
        }
        for (const int64_t target : batch.targets) {
          if (target != kIgnoredTarget) {
            ++targets[static_cast<size_t>(target)];
          }
        }
      }
      EXPECT_EQ(rows, batches.total_rows());
      EXPECT_EQ(rows, (split.tokens() + shape.length - 1) / shape.length);
      for (int64_t d = 0; d < split.documents(); ++d) {
        for (int64_t i = split.document_start(d); i < split.document_start(d + 1); ++i) {
          const bool predicted = i > (separate ? split.document_start(d) : 0);
          EXPECT_EQ(targets[static_cast<size_t>(i)], predicted ? 1 : 0) << "token " << i;
        }
      }
    }
  }
}

TEST_F(Rows, EvaluationSpreadsALimitOverTheSplit) {
  const TokenSplit& split = split_of({1000});
  EvaluationBatches batches(split, {.rows = 2, .length = 10, .max_tokens = 95});
  EXPECT_EQ(batches.total_rows(), 10);
  const auto pass = [&] {
    std::vector<int64_t> starts;
    Batch batch;
    while (batches.next(batch)) {
      for (int64_t r = 0; r < batch.rows; ++r) {
        starts.push_back(batch.inputs[static_cast<size_t>(r * 10)]);
      }
    }
    return starts;
  };
  const auto starts = pass();
  EXPECT_EQ(starts, (std::vector<int64_t>{0, 100, 200, 300, 400, 500, 600, 700, 800, 900}));
  batches.rewind();
  EXPECT_EQ(pass(), starts);
  EXPECT_EQ(EvaluationBatches(split, {.rows = 2, .length = 10, .max_tokens = 5000}).total_rows(),
            100);
  EXPECT_THROW(EvaluationBatches(split, {.max_tokens = -1}), Error);
}

}  // namespace
}  // namespace mdn::data
