#include "mdn/train/run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "mdn/core/error.h"
#include "mdn/data/dataset.h"
#include "mdn/io/file.h"
#include "mdn/tokenizer/tokenizer.h"
#include "mdn/train/checkpoint.h"
#include "mdn/train/metrics.h"
#include "mdn/train/plot.h"
#include "mdn/train/progress.h"
#include "mdn/train/schedule.h"
#include "mdn/train/tensorboard.h"
#include "mdn/train/trainer.h"

namespace mdn::train {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kEventFolder = "tensorboard";
constexpr const char* kCurveFile = "loss_curve.svg";

// The data folder has its tokenizer; data of plain bytes may come without one.
std::unique_ptr<Tokenizer> tokenizer_of(const data::TokenDataset& data) {
  std::unique_ptr<Tokenizer> tokenizer;
  if (fs::exists(data.folder() / kTokenizerFile)) {
    tokenizer = load_tokenizer(data.folder());
  } else {
    tokenizer = std::make_unique<ByteTokenizer>();
  }
  MDN_CHECK(tokenizer->hash() == data.manifest().tokenizer_hash,
            "{}: its tokens were made with another tokenizer than its {}", data.folder().string(),
            kTokenizerFile);
  return tokenizer;
}

class Run {
 public:
  Run(const TrainConfig& config, const RunOptions& options);
  RunResult operator()();

 private:
  void prepare_folder();
  void start_or_resume();
  void describe() const;
  void note_changed_keys(const OrderedJson& before);

  bool finished() const;
  double learning_rate() const;
  void train_step();
  void log_train(const StepResult& result);
  void log_skip(const std::string& bad);
  void evaluate(int64_t max_tokens);
  void checkpoint(bool must_succeed);
  void draw_curve();
  void show(bool line);

  double elapsed() const {
    return seconds_before_ + std::chrono::duration<double>(Clock::now() - start_).count();
  }
  double budget() const;  // seconds at which the last step must have ended
  bool stop_wanted() const { return options_.stop && options_.stop->load() != 0; }
  void record(const OrderedJson& line);
  template <class Work>
  void or_warn(const char* what, Work work);

  const TrainConfig config_;
  const RunOptions options_;
  const Clock::time_point start_ = Clock::now();
  const fs::path out_;
  Progress progress_;
  std::unique_ptr<RunLock> lock_;
  data::TokenDataset data_;
  std::unique_ptr<Tokenizer> tokenizer_;
  Trainer trainer_;
  Schedule schedule_;

  TrainerState state_;
  double seconds_before_ = 0;  // of earlier processes
  std::optional<AppendFile> metrics_;
  std::optional<EventWriter> events_;
  std::optional<double> held_out_;
  int64_t evaluated_step_ = -1, evaluated_tokens_ = -1;  // the last evaluation
  int64_t saved_step_ = -1;
  fs::path saved_path_;
  bool warned_metrics_ = false;

  double smooth_loss_ = 0;              // for people
  double step_seconds_ = 0;             // smoothed
  double window_seconds_ = 0;           // of the steps since the last line of metrics
  int64_t window_tokens_ = 0;           // theirs
  double evaluation_rate_ = 0;          // targets a second
  double checkpoint_seconds_ = 0;       // of the last one
  int64_t last_tokens_per_second_ = 0;  // of the last line
};

Run::Run(const TrainConfig& config, const RunOptions& options)
    : config_(config),
      options_(options),
      out_(config.out),
      data_(config.data),
      tokenizer_(tokenizer_of(data_)),
      trainer_(config, data_, *tokenizer_) {
  schedule_.kind = schedule_kind_from_name(config.schedule);
  schedule_.floor = config.final_lr_fraction;
}

void Run::prepare_folder() {
  std::error_code failed;
  fs::create_directories(out_, failed);
  MDN_CHECK(!failed && fs::is_directory(out_), "{}: cannot be made: {}", out_.string(),
            failed ? failed.message() : "there is a file of that name");
  lock_ = std::make_unique<RunLock>(out_);
  clean_leftovers(out_);
  if (options_.overwrite) {
    for (const Checkpoint& old : find_checkpoints(out_)) {
      fs::remove_all(old.path);
    }
    fs::remove(out_ / kMetricsFile);
    fs::remove(out_ / kCurveFile);
    fs::remove_all(out_ / kEventFolder);
  }
}

void Run::start_or_resume() {
  const std::vector<Checkpoint> present = find_checkpoints(out_);
  fs::path from = options_.resume_from;
  if (from.empty() && options_.resume) {
    if (present.empty()) {
      progress_.say(
          fmt::format("train: {} holds no checkpoint yet, starting at step 0", out_.string()));
    } else {
      from = present.back().path;
    }
  }
  MDN_CHECK(!from.empty() || present.empty(),
            "{}: holds checkpoints of an earlier run, the newest {}; --resume continues it, "
            "--overwrite starts anew, or choose another \"out\"",
            out_.string(), present.empty() ? "" : present.back().path.filename().string());
  if (!from.empty()) {
    MDN_CHECK(fs::exists(from / kTrainerFile), "{}: is no checkpoint: it has no {}", from.string(),
              kTrainerFile);
    state_ = trainer_.load(from);
    MDN_CHECK(present.empty() || present.back().step <= state_.step,
              "{}: holds {}, which is newer than {}; remove what is newer, or choose another "
              "\"out\"",
              out_.string(), present.back().path.filename().string(), from.string());
    progress_.say(fmt::format("train: resuming {} at step {}", from.string(), state_.step));
    note_changed_keys(state_.config);
    seconds_before_ = state_.seconds;
    if (!present.empty() && present.back().step == state_.step) {
      saved_step_ = state_.step;
      saved_path_ = present.back().path;
    }
  }
  state_.config = to_json(config_);
  truncate_metrics(out_ / kMetricsFile, from.empty() ? -1 : state_.step);
  or_warn("metrics", [&] {
    metrics_.emplace(out_ / kMetricsFile);
    events_.emplace(out_ / kEventFolder, from.empty() ? 0 : state_.step + 1);
  });
}

void Run::note_changed_keys(const OrderedJson& before) {
  const OrderedJson now = to_json(config_);
  for (const auto& item : now.items()) {
    const auto old = before.find(item.key());
    if (item.key() != "out" && old != before.end() && *old != item.value()) {
      progress_.say(fmt::format("train: {} was {} before, is {} now", item.key(), old->dump(),
                                item.value().dump()));
    }
  }
}

void Run::describe() const {
  const auto& parameters = trainer_.decoder().parameters();
  fmt::print("train: {} parameters, {} layers; {} tokens of data, {} held out; {} tokens a step\n",
             rate_text(static_cast<double>(parameters.count())),
             trainer_.decoder().config().layers.size(),
             rate_text(static_cast<double>(data_.train().tokens())),
             rate_text(static_cast<double>(data_.val().tokens())), config_.tokens_a_step());
  std::fflush(stdout);
}

RunResult Run::operator()() {
  prepare_folder();
  describe();
  start_or_resume();
  if (saved_step_ == state_.step && finished()) {
    progress_.say(fmt::format("train: {} is the end of this run already", saved_path_.string()));
    return {.stopped = false,
            .step = state_.step,
            .seconds = state_.seconds,
            .held_out = {},
            .checkpoint = saved_path_};
  }
  const bool evaluates = trainer_.can_evaluate();
  // The first loss starts the curve; with a time budget it also tells what evaluations take.
  if (evaluates && state_.step == 0 && (config_.eval_every > 0 || config_.max_seconds)) {
    evaluate(config_.eval_tokens);
  }
  while (!finished() && !stop_wanted()) {
    train_step();
    if (evaluates && config_.eval_every > 0 && state_.step % config_.eval_every == 0) {
      evaluate(config_.eval_tokens);
    }
    if (config_.checkpoint_every > 0 && state_.step % config_.checkpoint_every == 0) {
      checkpoint(false);
    }
  }
  RunResult result;
  result.stopped = stop_wanted() && !finished();
  if (!result.stopped && evaluates) {
    evaluate(config_.final_eval_tokens);
  }
  if (saved_step_ != state_.step) {
    checkpoint(true);
  }
  draw_curve();
  result.step = state_.step;
  result.seconds = elapsed();
  result.held_out = held_out_;
  result.checkpoint = saved_path_;
  return result;
}

double Run::budget() const {
  double reserve = 1.5 * checkpoint_seconds_;
  if (trainer_.can_evaluate() && evaluation_rate_ > 0) {
    const int64_t all = data_.val().tokens();
    const int64_t last =
        config_.final_eval_tokens > 0 ? std::min(config_.final_eval_tokens, all) : all;
    reserve += 1.1 * static_cast<double>(last) / evaluation_rate_;
  }
  return *config_.max_seconds - reserve;
}

bool Run::finished() const {
  if (config_.max_steps && state_.step >= *config_.max_steps) {
    return true;
  }
  return config_.max_seconds && elapsed() + step_seconds_ > budget();
}

double Run::learning_rate() const {
  Schedule schedule = schedule_;
  double done = 0;
  if (config_.max_seconds) {
    schedule.total = std::max(budget(), 1e-9);
    done = std::min(elapsed(), schedule.total);
  } else {
    schedule.total = static_cast<double>(*config_.max_steps);
    done = static_cast<double>(state_.step + 1);
  }
  schedule.warmup = config_.warmup_steps ? static_cast<double>(*config_.warmup_steps)
                                         : config_.warmup_fraction.value_or(0) * schedule.total;
  schedule.decay = config_.decay_fraction * schedule.total;
  return config_.learning_rate * schedule.factor(done);
}

void Run::train_step() {
  const Clock::time_point begin = Clock::now();
  const double rate = learning_rate();
  const StepResult result = trainer_.step(rate);
  ++state_.step;
  state_.tokens += result.tokens;
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  window_seconds_ += seconds;
  window_tokens_ += result.tokens;
  // The first step builds caches; from the second on a mean over about ten.
  step_seconds_ = step_seconds_ == 0 ? seconds : step_seconds_ + 0.1 * (seconds - step_seconds_);
  if (!result.bad.empty()) {
    log_skip(result.bad);
    return;
  }
  state_.skips_in_row = 0;
  state_.loss_sum += result.loss;
  ++state_.loss_count;
  smooth_loss_ =
      smooth_loss_ == 0 ? result.loss : smooth_loss_ + 0.05 * (result.loss - smooth_loss_);
  const bool line = state_.step % config_.log_every == 0;
  if (line) {
    last_tokens_per_second_ =
        static_cast<int64_t>(static_cast<double>(window_tokens_) / window_seconds_);
    OrderedJson json;
    json["step"] = state_.step;
    json["kind"] = "train";
    json["loss"] = state_.loss_sum / static_cast<double>(state_.loss_count);
    json["learning_rate"] = rate;
    json["gradient_norm"] = result.gradient_norm;
    json["tokens"] = state_.tokens;
    json["tokens_per_second"] = last_tokens_per_second_;
    json["seconds"] = elapsed();
    record(json);
    state_.loss_sum = 0;
    state_.loss_count = 0;
    window_seconds_ = 0;
    window_tokens_ = 0;
  }
  show(line);
}

void Run::log_skip(const std::string& bad) {
  ++state_.skips_in_row;
  OrderedJson json;
  json["step"] = state_.step;
  json["kind"] = "skip";
  json["tensor"] = bad;
  json["seconds"] = elapsed();
  record(json);
  progress_.say(
      fmt::format("train: step {}: {} is not finite; the weights stay as they are ({} in "
                  "a row)",
                  state_.step, bad, state_.skips_in_row));
  if (state_.skips_in_row > config_.max_skips) {
    checkpoint(true);
    draw_curve();
    MDN_THROW(
        "training stopped at step {}: {} is not finite, for {} steps in a row (max_skips {}); "
        "{} holds the last good weights; a lower learning_rate, a longer warm-up or clip may "
        "help",
        state_.step, bad, state_.skips_in_row, config_.max_skips, saved_path_.string());
  }
}

void Run::evaluate(int64_t max_tokens) {
  const int64_t all = data_.val().tokens();
  max_tokens = max_tokens > 0 ? std::min(max_tokens, all) : all;
  if (evaluated_step_ == state_.step && evaluated_tokens_ == max_tokens) {
    return;
  }
  if (config_.max_seconds && evaluation_rate_ == 0) {
    trainer_.evaluate(1);  // the first pass of a process builds caches: not what later ones take
  }
  const Clock::time_point begin = Clock::now();
  const Evaluation e = trainer_.evaluate(max_tokens);
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  evaluation_rate_ = static_cast<double>(e.targets) / std::max(seconds, 1e-9);
  evaluated_step_ = state_.step;
  evaluated_tokens_ = max_tokens;
  held_out_ = e.loss;
  if (std::isfinite(e.loss) && (state_.best_step < 0 || e.loss < state_.best_loss)) {
    state_.best_loss = e.loss;
    state_.best_step = state_.step;
  }
  OrderedJson json;
  json["step"] = state_.step;
  json["kind"] = "eval";
  json["loss"] = e.loss;
  json["bits_per_byte"] = e.bits_per_byte;
  json["tokens"] = e.targets;
  json["seconds"] = elapsed();
  record(json);
  progress_.say(
      fmt::format("step {}  held-out loss {:.4f} nats a token, {:.4f} bits a byte  ({} "
                  "tokens in {:.1f} s)",
                  state_.step, e.loss, e.bits_per_byte, e.targets, seconds));
}

void Run::record(const OrderedJson& line) {
  or_warn("metrics", [&] {
    if (metrics_) {
      metrics_->append(line.dump() + "\n");
    }
    if (!events_) {
      return;
    }
    const std::string kind = line["kind"];
    std::vector<std::pair<std::string, double>> scalars;
    for (const auto& item : line.items()) {
      if (item.value().is_number() && item.key() != "step") {
        scalars.emplace_back((kind == "eval" ? "held_out/" : "train/") + item.key(),
                             item.value().get<double>());
      }
    }
    events_->add(line["step"], scalars);
  });
}

void Run::checkpoint(bool must_succeed) {
  const Clock::time_point begin = Clock::now();
  try {
    if (metrics_) {
      metrics_->sync();  // a checkpoint's metrics are as durable as itself
    }
    state_.seconds = elapsed();
    const Checkpoint written = write_checkpoint(
        out_, state_.step, [&](const fs::path& folder) { trainer_.save(folder, state_); });
    saved_step_ = written.step;
    saved_path_ = written.path;
    prune_checkpoints(out_, config_.keep);
  } catch (const std::exception& error) {
    if (must_succeed) {
      throw;
    }
    progress_.say(
        fmt::format("train: no checkpoint at step {}: {}; older ones stay, training goes "
                    "on",
                    state_.step, error.what()));
  }
  checkpoint_seconds_ = std::chrono::duration<double>(Clock::now() - begin).count();
}

void Run::draw_curve() {
  or_warn("the loss curve", [&] {
    const LossCurves curves = read_loss_curves(out_ / kMetricsFile);
    const auto& parameters = trainer_.decoder().parameters();
    write_file_atomically(
        out_ / kCurveFile,
        loss_curve_svg(curves,
                       {.title = fmt::format("{}: {} parameters, {} tokens in {}", out_.string(),
                                             rate_text(static_cast<double>(parameters.count())),
                                             rate_text(static_cast<double>(state_.tokens)),
                                             duration_text(elapsed()))}));
  });
}

void Run::show(bool line) {
  ProgressState p;
  p.step = state_.step;
  p.max_steps = config_.max_steps;
  p.loss = smooth_loss_;
  p.held_out = held_out_;
  p.tokens_per_second = static_cast<double>(config_.tokens_a_step()) / step_seconds_;
  p.seconds_left = INFINITY;
  if (config_.max_steps) {
    p.seconds_left = step_seconds_ * static_cast<double>(*config_.max_steps - state_.step);
    p.done = static_cast<double>(state_.step) / static_cast<double>(*config_.max_steps);
  }
  if (config_.max_seconds) {
    p.seconds_left = std::min(p.seconds_left, *config_.max_seconds - elapsed());
    p.done = std::max(p.done, elapsed() / *config_.max_seconds);
  }
  progress_.update(p, line);
}

template <class Work>
void Run::or_warn(const char* what, Work work) {
  try {
    work();
  } catch (const std::exception& error) {
    if (!warned_metrics_) {
      warned_metrics_ = true;
      progress_.say(
          fmt::format("train: {} cannot be written and may lack lines: {}", what, error.what()));
    }
  }
}

}  // namespace

RunResult run(const TrainConfig& config, const RunOptions& options) {
  return Run(config, options)();
}

}  // namespace mdn::train
