#include "mdn/data/batches.h"

#include <algorithm>
#include <numeric>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"

namespace mdn::data {
namespace {

// What a seed is used for; each gets a key of its own.
constexpr uint64_t kDocumentOrder = 1;
constexpr uint64_t kRowOrder = 2;
constexpr uint64_t kRotation = 3;
constexpr uint64_t kWindowStart = 4;

// An epoch keeps the ring position of every 256th document: 1/32 byte a document, and at most 256
// documents to walk from there to a row's first token.
constexpr int64_t kGroup = 256;

int64_t divide_up(int64_t a, int64_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

void check_options(const TokenSplit& split, int64_t rows, int64_t length) {
  MDN_CHECK(rows >= 1, "{} rows a batch; at least 1 is needed", rows);
  MDN_CHECK(length >= 1, "rows of {} tokens; at least 1 is needed", length);
  MDN_CHECK(rows <= (int64_t{1} << 31) / length,
            "a batch of {} rows of {} tokens; at most {} tokens are allowed", rows, length,
            int64_t{1} << 31);
  MDN_CHECK(split.tokens() > 0, "the {} split has no tokens{}", split.name(),
            split.name() == "val" ? ": prepare the data with --val-fraction above 0" : "");
}

Batch empty_batch(int64_t rows, int64_t length, bool separate) {
  Batch batch;
  batch.rows = rows;
  batch.length = length;
  batch.inputs.reserve(static_cast<size_t>(rows * length));
  batch.targets.reserve(static_cast<size_t>(rows * length));
  if (separate) {
    batch.cu_seqlens.push_back(0);
  }
  return batch;
}

/// Tokens of a row and, where there is one, the token after it.
struct RowTokens {
  std::vector<int64_t> ids;     // `count` or `count + 1`
  std::vector<int64_t> starts;  // indices > 0 of ids at which another document starts
};

/// Appends tokens [first, first + count) of the split.
void append_tokens(const TokenSplit& split, int64_t first, int64_t count, RowTokens& row) {
  const size_t filled = row.ids.size();
  row.ids.resize(filled + static_cast<size_t>(count));
  split.read(first, std::span(row.ids).subspan(filled));
}

/// Turns the tokens into a row of `count` inputs, padded to batch.length.
void append_row(const RowTokens& row, int64_t count, bool separate, Batch& batch) {
  const auto base = static_cast<int64_t>(batch.inputs.size());
  // input[i] = ids[i], target[i] = ids[i + 1]
  batch.inputs.insert(batch.inputs.end(), row.ids.begin(), row.ids.begin() + count);
  batch.targets.insert(batch.targets.end(), row.ids.begin() + 1, row.ids.end());
  batch.inputs.resize(static_cast<size_t>(base + batch.length), 0);
  batch.targets.resize(static_cast<size_t>(base + batch.length), kIgnoredTarget);
  if (!separate) {
    return;
  }
  for (const int64_t start : row.starts) {
    batch.targets[static_cast<size_t>(base + start - 1)] = kIgnoredTarget;
    if (start < count) {
      batch.cu_seqlens.push_back(base + start);
    }
  }
  if (count < batch.length) {
    batch.cu_seqlens.push_back(base + count);
  }
  batch.cu_seqlens.push_back(base + batch.length);
}

/// Appends document d as a row, padded to batch.length.
void append_document(const TokenSplit& split, int64_t d, Batch& batch) {
  const int64_t first = split.document_start(d);
  const int64_t count = split.document_start(d + 1) - first;
  const size_t base = batch.inputs.size();
  batch.inputs.resize(base + static_cast<size_t>(batch.length), 0);
  batch.targets.resize(base + static_cast<size_t>(batch.length), kIgnoredTarget);
  const auto inputs = std::span(batch.inputs).subspan(base, static_cast<size_t>(count));
  const auto targets = std::span(batch.targets).subspan(base, static_cast<size_t>(count));
  split.read(first, inputs);
  if (split.has_targets()) {
    split.read_targets(first, targets);
  } else if (count > 0) {
    std::copy(inputs.begin() + 1, inputs.end(), targets.begin());
  }
}

/// That whole documents fit their rows, and that data with targets of its own comes in such rows.
void check_rows(const TokenSplit& split, bool documents, int64_t length) {
  if (!documents) {
    MDN_CHECK(!split.has_targets(),
              "the {} split has targets of its own, so every row must be a whole document: order "
              "documents",
              split.name());
    return;
  }
  for (int64_t d = 0; d < split.documents(); ++d) {
    const int64_t tokens = split.document_start(d + 1) - split.document_start(d);
    MDN_CHECK(tokens <= length,
              "the {} split: document {} has {} tokens, and a row of whole documents only {}",
              split.name(), d, tokens, length);
  }
}

}  // namespace

int64_t Batch::predicted() const {
  return static_cast<int64_t>(targets.size()) -
         std::count(targets.begin(), targets.end(), kIgnoredTarget);
}

const char* name_of(RowOrder order) {
  return order == RowOrder::kPacked    ? "packed"
         : order == RowOrder::kWindows ? "windows"
                                       : "documents";
}

RowOrder row_order_from_name(const std::string& name) {
  for (const auto order : {RowOrder::kPacked, RowOrder::kWindows, RowOrder::kDocuments}) {
    if (name == name_of(order)) {
      return order;
    }
  }
  MDN_THROW("an order of rows called '{}'; allowed are packed, windows and documents", name);
}

Json Position::to_json() const {
  return {{"epoch", epoch},   {"row", row},     {"seed", seed},
          {"length", length}, {"order", order}, {"separate_documents", separate_documents},
          {"data", data}};
}

Position Position::from_json(const JsonObject& json) {
  json.check_keys({"epoch", "row", "seed", "length", "order", "separate_documents", "data"});
  Position position;
  position.epoch = json.integer("epoch", 0);
  position.row = json.integer("row", 0);
  position.seed = json.integer("seed", 0);
  position.length = json.integer("length", 1);
  position.order = json.string("order", {"packed", "windows", "documents"});
  position.separate_documents = json.boolean("separate_documents");
  position.data = json.string("data");
  return position;
}

Batches::Batches(const TokenSplit& split, const BatchOptions& options)
    : split_(split), options_(options) {
  check_options(split, options.rows, options.length);
  MDN_CHECK(options.seed >= 0, "a seed of {}; it must not be negative", options.seed);
  MDN_CHECK(options.order != RowOrder::kWindows || split.tokens() > options.length,
            "windows of {} tokens and the one after them do not fit the {} tokens of the {} split; "
            "use shorter ones or packed rows",
            options.length, split.tokens(), split.name());
  check_rows(split, options.order == RowOrder::kDocuments, options.length);
  if (options.order != RowOrder::kPacked) {
    options_.separate_documents = false;  // no boundaries within a row
  }
  rows_per_epoch_ = options.order == RowOrder::kDocuments
                        ? split.documents()
                        : divide_up(split.tokens(), options.length);
}

Position Batches::position() const {
  return {.epoch = epoch_,
          .row = row_,
          .seed = options_.seed,
          .length = options_.length,
          .order = name_of(options_.order),
          .separate_documents = options_.separate_documents,
          .data = split_.digest()};
}

void Batches::seek(const Position& to) {
  const Position here = position();
  MDN_CHECK(
      to.data == here.data,
      "the saved position is of other data ({}...) than the {} split ({}...): its rows cannot "
      "be continued",
      to.data.substr(0, 12), split_.name(), here.data.substr(0, 12));
  MDN_CHECK(to.seed == here.seed, "the saved position is of seed {}, this run of {}", to.seed,
            here.seed);
  MDN_CHECK(to.length == here.length, "the saved position is of rows of {} tokens, this run of {}",
            to.length, here.length);
  MDN_CHECK(to.order == here.order, "the saved position is of {} rows, this run of {}", to.order,
            here.order);
  MDN_CHECK(to.separate_documents == here.separate_documents,
            "the saved position is of {} documents, this run of {}",
            to.separate_documents ? "separate" : "joined",
            here.separate_documents ? "separate" : "joined");
  const bool windows = options_.order == RowOrder::kWindows;
  MDN_CHECK(to.epoch >= 0 && to.row >= 0 && (windows ? to.epoch == 0 : to.row < rows_per_epoch_),
            "the saved position is row {} of epoch {}; an epoch has {} rows", to.row, to.epoch,
            rows_per_epoch_);
  epoch_ = to.epoch;
  row_ = to.row;
}

Batch Batches::next() {
  Batch batch = empty_batch(options_.rows, options_.length, options_.separate_documents);
  for (int64_t r = 0; r < options_.rows; ++r) {
    if (options_.order == RowOrder::kWindows) {
      append_window(batch);
      ++row_;
      continue;
    }
    if (options_.order == RowOrder::kDocuments) {
      if (opened_epoch_ != epoch_) {
        rows_ = Permutation(rows_per_epoch_, derive_key(options_.seed, kDocumentOrder, epoch_));
        opened_epoch_ = epoch_;
      }
      append_document(split_, rows_(row_), batch);
    } else {
      append_packed_row(batch);
    }
    if (++row_ == rows_per_epoch_) {
      row_ = 0;
      ++epoch_;
    }
  }
  return batch;
}

// start uniform in [0, N - T): the last window's last target is the last token.
void Batches::append_window(Batch& batch) {
  const int64_t T = options_.length;
  const int64_t start = keyed_below(derive_key(options_.seed, kWindowStart, 0),
                                    static_cast<uint64_t>(row_), split_.tokens() - T);
  RowTokens row;
  append_tokens(split_, start, T + 1, row);
  append_row(row, T, false, batch);
}

void Batches::open_epoch() {
  const int64_t documents = split_.documents();
  documents_ = Permutation(documents, derive_key(options_.seed, kDocumentOrder, epoch_));
  rows_ = Permutation(rows_per_epoch_, derive_key(options_.seed, kRowOrder, epoch_));
  rotation_ = keyed_below(derive_key(options_.seed, kRotation, epoch_), 0, split_.tokens());
  const int64_t groups = divide_up(documents, kGroup);
  group_starts_.assign(static_cast<size_t>(groups) + 1, 0);
  parallel_for(groups, [&](int64_t g, int) {
    int64_t tokens = 0;
    for (int64_t k = g * kGroup; k < std::min(documents, (g + 1) * kGroup); ++k) {
      const int64_t d = documents_(k);
      tokens += split_.document_start(d + 1) - split_.document_start(d);
    }
    group_starts_[static_cast<size_t>(g) + 1] = tokens;
  });
  std::partial_sum(group_starts_.begin(), group_starts_.end(), group_starts_.begin());
  opened_epoch_ = epoch_;
}

void Batches::append_packed_row(Batch& batch) {
  if (opened_epoch_ != epoch_) {
    open_epoch();
  }
  const int64_t N = split_.tokens();
  const int64_t begin = rows_(row_) * options_.length;
  const int64_t count = std::min(options_.length, N - begin);
  // Both below N <= 2^60: the sum fits.
  const int64_t at = (rotation_ + begin) % N;

  // The shuffled document that holds ring position `at`, from the start of its group.
  const auto group =
      std::upper_bound(group_starts_.begin(), group_starts_.end(), at) - group_starts_.begin() - 1;
  int64_t k = group * kGroup;
  int64_t position = group_starts_[static_cast<size_t>(group)];  // where document k starts
  int64_t first = 0;
  int64_t length = 0;
  const auto visit = [&] {
    const int64_t d = documents_(k);
    first = split_.document_start(d);
    length = split_.document_start(d + 1) - first;
  };
  for (visit(); position + length <= at; visit()) {
    position += length;
    ++k;
  }
  // Inputs and the token after them; the ring closes, so there always is one.
  RowTokens row;
  int64_t offset = at - position;
  for (int64_t wanted = count + 1; wanted > 0;) {
    if (offset == 0 && length > 0 && !row.ids.empty()) {
      row.starts.push_back(static_cast<int64_t>(row.ids.size()));
    }
    const int64_t take = std::min(wanted, length - offset);
    append_tokens(split_, first + offset, take, row);
    wanted -= take;
    k = k + 1 == split_.documents() ? 0 : k + 1;
    offset = 0;
    if (wanted > 0) {
      visit();
    }
  }
  append_row(row, count, options_.separate_documents, batch);
}

EvaluationBatches::EvaluationBatches(const TokenSplit& split, const Options& options)
    : split_(split), options_(options) {
  check_options(split, options.rows, options.length);
  MDN_CHECK(options.max_tokens >= 0,
            "at most {} tokens to evaluate; 0 means all, fewer is an error", options.max_tokens);
  check_rows(split, options.documents, options.length);
  if (options.documents) {
    options_.separate_documents = false;
  }
  rows_in_split_ =
      options.documents ? split.documents() : divide_up(split.tokens(), options.length);
  total_rows_ = options.max_tokens == 0
                    ? rows_in_split_
                    : std::min(rows_in_split_, divide_up(options.max_tokens, options.length));
}

bool EvaluationBatches::next(Batch& batch) {
  const int64_t rows = std::min(options_.rows, total_rows_ - row_);
  if (rows == 0) {
    return false;
  }
  const int64_t N = split_.tokens();
  batch = empty_batch(rows, options_.length, options_.separate_documents);
  for (int64_t r = 0; r < rows; ++r, ++row_) {
    // floor(row * rows_in_split / total), in parts that do not pass 64 bits.
    const int64_t chosen =
        row_ * (rows_in_split_ / total_rows_) + row_ * (rows_in_split_ % total_rows_) / total_rows_;
    if (options_.documents) {
      append_document(split_, chosen, batch);
      continue;
    }
    const int64_t begin = chosen * options_.length;
    const int64_t count = std::min(options_.length, N - begin);
    const int64_t read = std::min(count + 1, N - begin);
    RowTokens row;
    append_tokens(split_, begin, read, row);
    if (options_.separate_documents) {
      int64_t d = split_.document_of(begin) + 1;
      for (; split_.document_start(d) < begin + read; ++d) {
        const int64_t start = split_.document_start(d) - begin;
        if (row.starts.empty() || row.starts.back() != start) {  // an empty document starts nothing
          row.starts.push_back(start);
        }
      }
    }
    append_row(row, count, options_.separate_documents, batch);
  }
  return true;
}

}  // namespace mdn::data
