// A training run in its folder: the loop, its clock, metrics, checkpoints and what is shown.
//
//   OUT/step-00001000/   checkpoints (mdn/train/checkpoint.h)
//   OUT/metrics.jsonl    losses, rates (mdn/train/metrics.h)
//   OUT/tensorboard/     the same as event files
//   OUT/loss_curve.svg   drawn when the run ends or stops
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "mdn/train/config.h"

namespace mdn::train {

struct RunOptions {
  /// Go on from the newest checkpoint in OUT; without one, start at step 0.
  bool resume = false;
  /// Or from this one. It may lie in another run's folder.
  std::filesystem::path resume_from;
  /// Remove what an earlier run left in OUT. Without this and without resuming, a folder that holds
  /// checkpoints is refused.
  bool overwrite = false;
  /// Set to a signal's number from elsewhere, it ends the run after the current step with a
  /// checkpoint.
  const std::atomic<int>* stop = nullptr;
};

struct RunResult {
  bool stopped = false;  // by RunOptions::stop, before the end
  int64_t step = 0;
  double seconds = 0;  // of training, over all the run's processes
  std::optional<double> held_out;
  std::filesystem::path checkpoint;
};

/// Trains until max_steps or max_seconds. With max_seconds the schedule follows the clock, and the
/// time that the last evaluation and checkpoint will take is kept free, so that the run ends in
/// time; such runs are not reproducible bit for bit. Everything else is, on the CPU with one number
/// of threads, whatever interruptions lie between.
///
/// A checkpoint, metrics or event file that cannot be written (a full disk) is reported and
/// training goes on with what was written before; only the last checkpoint of a run must succeed.
/// A step whose loss or gradients are not finite leaves the weights as they were; more than
/// max_skips of them in a row end the run with a checkpoint of the last good weights and an error.
RunResult run(const TrainConfig& config, const RunOptions& options);

}  // namespace mdn::train
