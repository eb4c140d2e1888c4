// The computation of a run: model, optimiser and data; a step, an evaluation, saving and loading.
// When, how often and with which learning rate is the run's affair (mdn/train/run.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "mdn/data/batches.h"
#include "mdn/data/dataset.h"
#include "mdn/model/decoder.h"
#include "mdn/tokenizer/tokenizer.h"
#include "mdn/train/checkpoint.h"
#include "mdn/train/config.h"
#include "mdn/train/optimizer.h"

namespace mdn::train {

/// What a step did. Losses are means in nats over the step's targets.
struct StepResult {
  double loss = 0;
  double gradient_norm = 0;  // before clipping; of no meaning when the loss was not finite
  int64_t tokens = 0;        // inputs of the step
  /// Empty: the weights were updated. Otherwise they and the optimiser are as before the step, and
  /// this names what was not finite: "loss", or the first parameter with such a gradient.
  std::string bad;
};

struct Evaluation {
  double loss = 0;           // mean in nats over the targets
  double bits_per_byte = 0;  // the same for a byte of text
  int64_t targets = 0;
};

class Trainer {
 public:
  /// New weights from `seed`, or those of `init_from`. `data` and `tokenizer` must outlive it.
  /// Throws when the model's vocabulary is too small for the data, and when the device is absent.
  Trainer(const TrainConfig& config, const data::TokenDataset& data, const Tokenizer& tokenizer);

  /// Takes the next `accumulate` micro-batches; gradients of the mean loss over all their targets,
  /// clipped to `clip`; one AdamW update.
  StepResult step(double learning_rate);

  /// Mean loss over the held-out split, or about `max_tokens` of it at even distances (0: all).
  Evaluation evaluate(int64_t max_tokens) const;
  bool can_evaluate() const { return data_.val().tokens() > 0; }

  /// Fills a folder with a whole checkpoint. Position and optimizer_step of `state` are filled in.
  void save(const std::filesystem::path& folder, TrainerState state) const;
  /// Goes on from a checkpoint: after it, every step does bit for bit what it would have done.
  /// Throws when the checkpoint is of another model, or of other data or another order of rows.
  TrainerState load(const std::filesystem::path& folder);

  const model::Decoder& decoder() const { return decoder_; }
  model::Decoder& decoder() { return decoder_; }

 private:
  at::Tensor loss(const data::Batch& batch) const;

  TrainConfig config_;
  const data::TokenDataset& data_;
  const Tokenizer& tokenizer_;
  c10::Device device_;
  model::Decoder decoder_;
  AdamW optimizer_;
  data::Batches batches_;
};

}  // namespace mdn::train
