// metrics.jsonl: what a run measured, one JSON object a line.
//
//   {"step":100,"kind":"train","loss":...,"learning_rate":...,"gradient_norm":...,
//    "tokens":...,"tokens_per_second":...,"seconds":...}
//   {"step":100,"kind":"eval","loss":...,"bits_per_byte":...,"tokens":...,"seconds":...}
//   {"step":107,"kind":"skip","tensor":"...","seconds":...}
//
// Losses are nats a token; "tokens" of a train line counts all tokens trained on so far. Lines are
// in the order of their steps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "mdn/io/json.h"
#include "mdn/train/append_file.h"

namespace mdn::train {

inline constexpr const char* kMetricsFile = "metrics.jsonl";

/// Drops the lines of steps after `last_step`, and a last line that a killed process left
/// unfinished, so that a resumed run goes on as if it had never been interrupted. The file is
/// replaced atomically; a missing file stays missing. Other lines that are no JSON object with a
/// step are errors.
void truncate_metrics(const std::filesystem::path& path, int64_t last_step);

/// A point of a curve.
struct MetricPoint {
  int64_t step = 0;
  double seconds = 0;
  double loss = 0;
};

struct LossCurves {
  std::vector<MetricPoint> train, held_out;
};

/// Reads the losses back; values that are not finite (null) are left out.
LossCurves read_loss_curves(const std::filesystem::path& path);

}  // namespace mdn::train
