// Single-token steps of a model on CUDA, as graphs.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "mdn/generate/device_step.h"
#include "mdn/generate/sampler.h"
#include "mdn/model/decoder.h"

namespace mdn::generate {

/// The step (device_step.h) and the drawing from its logits (device_sampler.h) are captured once
/// for each of a few batch sizes and replayed for every token: launching their kernels one by one
/// would take longer than they do. A batch is filled up to the next of those sizes. A graph reads
/// and writes fixed addresses, so states of a batch are kept in a pool of the stepper's own, which
/// a state that is stepped comes to share. States of attention layers are caches
/// (attention_cache.h); the sequences of a batch may have read different numbers of tokens.
class CudaStepper {
 public:
  /// Whether the model lies on a CUDA device and its attention layers, if any, can be stepped
  /// there.
  static bool supports(const model::Decoder& decoder);

  /// The decoder must outlive it; throws where it is not supported.
  explicit CudaStepper(const model::Decoder& decoder);
  ~CudaStepper();

  /// One way of drawing for all rows, without a repetition penalty, and a number for each row
  /// (device_sampler.h; none with temperature 0).
  struct Drawing {
    SamplerOptions options;
    std::vector<double> uniform;
  };

  /// What follows the tokens: logits [B, vocab] float32 on the CPU, valid until the next call, or
  /// of each row the token that was drawn and the largest logit (a NaN counts as such).
  struct Next {
    at::Tensor logits;
    std::vector<int64_t> ids;
    std::vector<float> largest;
  };

  /// Reads one token a row and advances the state. positions: the tokens that each row has read
  /// before. Gives logits without `drawing`. One batch at a time may be on its way: its state holds
  /// the pool until a step with another.
  Next step(const std::vector<int64_t>& ids, const std::vector<int64_t>& positions,
            model::DecoderState& state, const Drawing* drawing);

  /// The same without a graph and without the pool, for a sequence that joins a batch later.
  Next step_alone(int64_t id, int64_t position, model::DecoderState& state, const Drawing* drawing);

 private:
  struct Graph;
  using Key = std::tuple<int64_t, double, int64_t, double, double>;  // batch size, way of drawing

  Graph& graph_of(int64_t size, const SamplerOptions& options);
  void bind(model::DecoderState& state, int64_t B);
  bool fits_pool(model::DecoderState& state);
  void make_pool(const model::DecoderState& like, int64_t capacity);
  Next fetch_logits(const at::Tensor& logits);
  static Next fetch_drawn(const at::Tensor& drawn, const at::Tensor& host, int64_t B);

  c10::Device device_;
  DeviceStep step_;
  int64_t capacity_ = 0;
  model::DecoderState pool_;              // [capacity, ...]
  at::Tensor ids_, positions_, uniform_;  // [capacity] int64 and float64 on the device
  at::Tensor host_ids_, host_positions_, host_uniform_;  // pinned, for those
  at::Tensor host_drawn_, host_logits_;                  // pinned, for results
  std::map<Key, std::unique_ptr<Graph>> graphs_;
};

}  // namespace mdn::generate
