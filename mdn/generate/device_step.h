// One token of each of several sequences, as the launches of kernels on CUDA: what Decoder::hidden
// and logits do, with few of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "mdn/model/decoder.h"

namespace mdn::generate {

/// A published Momentum DeltaNet takes eight launches a layer for few sequences and eleven for
/// many: all that reads a norm is one product with packed weights (so a second copy of most weights
/// is kept), the convolutions are one kernel, sums with the residual stream are made by the
/// products, and for few sequences so are norms and the SwiGLU (kernels/linear.h). Every other
/// model of recurrent layers is run by the decoder itself.
///
/// Nothing waits for the device or copies from or to the host, and states are advanced where they
/// lie: a call can be captured in a graph.
class DeviceStep {
 public:
  /// Whether the model lies on a CUDA device and has no attention layers.
  static bool supports(const model::Decoder& decoder);

  /// The decoder must outlive it.
  explicit DeviceStep(const model::Decoder& decoder);

  /// Reads ids [B] int64 on the device; the logits that follow, [B, vocab] of the model's dtype.
  /// Defined tensors of the state, [B, ...], keep their place; undefined ones, of sequences that
  /// have read nothing, are made. The state's position is left alone.
  at::Tensor operator()(const at::Tensor& ids, model::DecoderState& state) const;

 private:
  // A layer's weights as the kernels read them.
  struct Layer {
    at::Tensor in;       // [columns, D]: q, k, v, g, a, b, m, e, filled up
    at::Tensor gate_up;  // [2 I, D]
    at::Tensor attn_norm, mlp_norm, q_conv, k_conv, v_conv, A_log, Mu_log, log_factor, dt_bias,
        mu_bias, D_log, o_norm;  // float32
  };

  at::Tensor by_decoder(const at::Tensor& ids, model::DecoderState& state) const;
  void mix(size_t layer, at::Tensor& x, layers::MomentumDeltaNetState& state) const;
  void mlp(size_t layer, at::Tensor& x) const;
  at::Tensor product_of_norm(const at::Tensor& x, const at::Tensor& norm,
                             const at::Tensor& weight) const;

  const model::Decoder& decoder_;
  std::vector<Layer> layers_;  // empty: by the decoder
  at::Tensor norm_;            // float32
};

}  // namespace mdn::generate
