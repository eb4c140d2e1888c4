// Perplexity of texts: every token predicted once, windows as in mdn/evaluate/windows.h.
#include <algorithm>
#include <memory>

#include "mdn/core/error.h"
#include "mdn/data/dataset.h"
#include "mdn/data/documents.h"
#include "mdn/evaluate/evaluate.h"
#include "mdn/evaluate/text.h"
#include "mdn/evaluate/windows.h"

namespace mdn::evaluate {
namespace {

// Tokens collected before they are scored: enough to batch by length, little to hold.
constexpr int64_t kDocumentTokens = int64_t{1} << 20;

/// A document as the model reads it.
struct Encoded {
  std::vector<int64_t> tokens;  // the first is only context
  double words = 0;
  double bytes = 0;  // of the text of the tokens that are predicted
  std::string place;
};

/// Where documents come from.
class Source {
 public:
  virtual ~Source() = default;
  virtual bool next(Encoded& document) = 0;
  virtual double done() = 0;  // share that was read
  /// Once everything was read or the limit reached.
  virtual void describe(OrderedJson& settings) = 0;
};

class FileSource : public Source {
 public:
  FileSource(const TaskSpec& task, const Tokenizer& tokenizer)
      : path_(task.string("file")),
        tokenizer_(tokenizer),
        prefix_(prefix_token(tokenizer)),
        reader_(path_, {.format = data::source_format_from_name(task.string_or("format", "auto")),
                        .field = task.string_or("field", "text")}),
        file_bytes_(static_cast<double>(std::filesystem::file_size(path_))) {}

  bool next(Encoded& document) override {
    data::Document text;
    if (!reader_.next(text)) {
      return false;
    }
    MDN_CHECK(!text.text.empty(), "{}: the document is empty", text.place);
    const auto ids = tokenizer_.encode(text.text);
    document = {.tokens = {ids.begin(), ids.end()},
                .words = static_cast<double>(count_words(text.text)),
                .bytes = static_cast<double>(text.text.size()),
                .place = text.place};
    if (prefix_) {
      document.tokens.insert(document.tokens.begin(), *prefix_);
    } else if (!ids.empty()) {
      document.bytes -= static_cast<double>(tokenizer_.token_bytes(ids.front()).size());
    }
    return true;
  }
  double done() override {
    return static_cast<double>(reader_.stream().file_bytes()) / std::max(file_bytes_, 1.0);
  }
  void describe(OrderedJson& settings) override {
    data::Document rest;  // the hash is of the whole file
    while (reader_.next(rest)) {
    }
    settings["file"] = path_;
    settings["sha256"] = reader_.stream().file_sha256();
    settings["format"] = name_of(reader_.format());
  }

 private:
  std::string path_;
  const Tokenizer& tokenizer_;
  std::optional<int32_t> prefix_;
  data::DocumentReader reader_;
  double file_bytes_;
};

class ShardSource : public Source {
 public:
  ShardSource(const TaskSpec& task, const Tokenizer& tokenizer)
      : dataset_(task.string("data")),
        split_(task.string_or("split", "val")),
        tokenizer_(tokenizer),
        prefix_(prefix_token(tokenizer)) {
    MDN_CHECK(split_ == "val" || split_ == "train",
              "perplexity: split is '{}'; allowed: train, val", split_);
    MDN_CHECK(dataset_.manifest().tokenizer_hash == tokenizer.hash(),
              "{}: its tokens were made with another tokenizer ({}...) than the model's ({}...)",
              dataset_.folder().string(), dataset_.manifest().tokenizer_hash.substr(0, 12),
              tokenizer.hash().substr(0, 12));
    MDN_CHECK(split().documents() > 0, "{}: the {} split has no documents",
              dataset_.folder().string(), split_);
  }

  bool next(Encoded& document) override {
    if (at_ == split().documents()) {
      return false;
    }
    const int64_t begin = split().document_start(at_);
    std::vector<int64_t> ids(static_cast<size_t>(split().document_start(at_ + 1) - begin));
    split().read(begin, ids);
    document.place = fmt::format("{}: {} document {}", dataset_.folder().string(), split_, at_);
    MDN_CHECK(!ids.empty(), "{}: the document is empty", document.place);
    // A bos the shard has is the context of what follows; otherwise the prefix token is.
    if (prefix_ && ids.front() != *prefix_) {
      ids.insert(ids.begin(), *prefix_);
    }
    std::string text;
    for (const int64_t id : ids) {
      if (!tokenizer_.is_special(static_cast<int32_t>(id))) {
        text += tokenizer_.token_bytes(static_cast<int32_t>(id));
      }
    }
    document.words = static_cast<double>(count_words(text));
    document.bytes = static_cast<double>(text.size());
    if (!prefix_) {
      document.bytes -=
          static_cast<double>(tokenizer_.token_bytes(static_cast<int32_t>(ids.front())).size());
    }
    document.tokens = std::move(ids);
    ++at_;
    return true;
  }
  double done() override {
    return static_cast<double>(at_) / static_cast<double>(split().documents());
  }
  void describe(OrderedJson& settings) override {
    settings["data"] = dataset_.folder().string();
    settings["split"] = split_;
    settings["digest"] = split().digest();
  }

 private:
  const data::TokenSplit& split() const {
    return split_ == "val" ? dataset_.val() : dataset_.train();
  }

  data::TokenDataset dataset_;
  std::string split_;
  const Tokenizer& tokenizer_;
  std::optional<int32_t> prefix_;
  int64_t at_ = 0;
};

/// Sums over documents.
struct Totals {
  std::vector<double> log_likelihoods, tokens, words, bytes;
};

void score_group(Scorer& scorer, const std::vector<Encoded>& group, int64_t window, int64_t stride,
                 const Options& options, double from, double to, Totals& totals) {
  std::vector<Sequence> sequences;
  std::vector<size_t> document_of;
  for (size_t d = 0; d < group.size(); ++d) {
    for (Sequence& sequence : rolling_sequences(group[d].tokens, window, stride)) {
      sequences.push_back(std::move(sequence));
      document_of.push_back(d);
    }
  }
  const auto scores = scorer.score(sequences, [&](int64_t done, int64_t all) {
    if (options.progress) {
      options.progress(from + (to - from) * static_cast<double>(done) / static_cast<double>(all));
    }
  });
  std::vector<double> log_likelihoods(group.size(), 0.0), tokens(group.size(), 0.0);
  for (size_t i = 0; i < scores.size(); ++i) {
    log_likelihoods[document_of[i]] += scores[i].log_likelihood();
    tokens[document_of[i]] += static_cast<double>(scores[i].log_probs.size());
  }
  for (size_t d = 0; d < group.size(); ++d) {
    totals.log_likelihoods.push_back(log_likelihoods[d]);
    totals.tokens.push_back(tokens[d]);
    totals.words.push_back(group[d].words);
    totals.bytes.push_back(group[d].bytes);
    if (options.sample) {
      options.sample({{"place", group[d].place},
                      {"log_likelihood", log_likelihoods[d]},
                      {"tokens", tokens[d]},
                      {"words", group[d].words},
                      {"bytes", group[d].bytes}});
    }
  }
}

}  // namespace

void run_perplexity(Scorer& scorer, const Tokenizer& tokenizer, const Options& options,
                    Result& result) {
  const TaskSpec& task = result.task;
  MDN_CHECK(task.has("file") != task.has("data"),
            "perplexity: give either file=FILE or data=FOLDER");
  const int64_t window = task.integer_or("window", kDefaultWindow, 0);
  const int64_t stride = task.integer_or("stride", window, 1);
  MDN_CHECK(window == 0 ? !task.has("stride") : stride <= window,
            "perplexity: a stride of {} with a window of {}{}", stride, window,
            window == 0 ? "; whole documents have none" : "; it must not be larger");
  std::unique_ptr<Source> source;
  if (task.has("file")) {
    source = std::make_unique<FileSource>(task, tokenizer);
  } else {
    source = std::make_unique<ShardSource>(task, tokenizer);
  }
  Totals totals;
  std::vector<Encoded> group;
  int64_t held = 0, seen = 0;
  double scored = 0;  // share of the source
  const auto flush = [&] {
    const double read = source->done();
    score_group(scorer, group, window, stride, options, scored, read, totals);
    scored = read;
    group.clear();
    held = 0;
  };
  for (Encoded document; (options.limit == 0 || seen < options.limit) && source->next(document);) {
    ++seen;
    held += static_cast<int64_t>(document.tokens.size());
    group.push_back(std::move(document));
    if (held >= kDocumentTokens) {
      flush();
    }
  }
  flush();
  const bool predicted =
      std::any_of(totals.tokens.begin(), totals.tokens.end(), [](double n) { return n > 0; });
  MDN_CHECK(predicted, "{}: there is nothing to predict", task.text());

  result.settings["window"] = window;
  result.settings["stride"] = window == 0 ? Json(nullptr) : Json(stride);
  source->describe(result.settings);
  const auto prefix = prefix_token(tokenizer);
  result.settings["prefix_token"] = prefix ? Json(*prefix) : Json(nullptr);
  if (!prefix) {
    result.notes.emplace_back(
        "the tokenizer has no bos or eos: the first token of a document is context, not predicted");
  }
  result.samples = seen;
  const auto total = [](const std::vector<double>& values) {
    return static_cast<int64_t>(std::accumulate(values.begin(), values.end(), 0.0));
  };
  result.settings["predicted"] = {{"tokens", total(totals.tokens)},
                                  {"words", total(totals.words)},
                                  {"bytes", total(totals.bytes)}};
  const auto per = [&](const std::vector<double>& units) {
    return nats_per_unit(totals.log_likelihoods, units);
  };
  result.metrics = {weighted_perplexity("token_perplexity", per(totals.tokens)),
                    weighted_perplexity("word_perplexity", per(totals.words)),
                    weighted_perplexity("byte_perplexity", per(totals.bytes)),
                    bits("bits_per_byte", per(totals.bytes))};
}

}  // namespace mdn::evaluate
