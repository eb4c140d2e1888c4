// Single-token steps of a float32 model on the CPU, past torch's dispatcher.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "mdn/kernels/linear.h"
#include "mdn/model/decoder.h"

namespace mdn::generate {

/// The same function as Decoder::hidden and logits for one token a row, by the kernels directly:
/// a small model spends most of a step on operator calls otherwise, and a large one gains from
/// products that read each weight once at memory speed. Besides, a row's result does not depend on
/// the other rows (attention layers excepted): many prompts decode to the same bits as one.
class Stepper {
 public:
  /// Whether the model's weights and arithmetic are float32 on the CPU and its layers are of
  /// momentum_deltanet or attention.
  static bool supports(const model::Decoder& decoder);

  /// The decoder must outlive it; throws where it is not supported.
  explicit Stepper(const model::Decoder& decoder);

  /// Reads one token a row and advances the state; the logits that follow, [B, vocab] float32,
  /// valid until the next call.
  at::Tensor step(const std::vector<int64_t>& ids, model::DecoderState& state);

 private:
  // What is computed once from a layer's weights.
  struct Layer {
    std::vector<float> q_taps, k_taps, v_taps;   // [W, channels], the current token's first
    std::vector<float> decay, momentum, factor;  // [HV]: exp of A_log, Mu_log, log_factor
    std::vector<float> dt_bias, mu_bias;         // [HV]
    std::vector<float> correction;               // [H] exp(D_log); empty: none
    int64_t W = 1;                               // without convolution: one tap of 1
  };

  void mix(size_t layer, int64_t B, layers::MomentumDeltaNetState& state);
  void gates(const Layer& layer, const layers::MomentumDeltaNetOptions& options, int64_t B);
  float* scratch(size_t slot, int64_t size);

  const model::Decoder& decoder_;
  std::vector<Layer> layers_;
  std::vector<std::vector<float>> scratch_;
  at::Tensor logits_;
};

}  // namespace mdn::generate
