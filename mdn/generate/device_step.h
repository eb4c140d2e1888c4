// One token of each of several sequences, as the launches of kernels on CUDA: what Decoder::hidden
// and logits do, with few of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "mdn/generate/device_mixer.h"
#include "mdn/model/decoder.h"

namespace mdn::generate {

/// Where every layer has kernels (device_mixer.h) it takes few launches: all that reads a norm is
/// one product with packed weights (so a second copy of most weights is kept), sums with the
/// residual stream are made by the products, and for few sequences so are norms and the SwiGLU
/// (kernels/linear.h). A published Momentum DeltaNet or Gated DeltaNet takes eight launches a layer
/// for few sequences and eleven for many. Every other model of recurrent layers is run by the
/// decoder itself; attention layers must have kernels.
///
/// Nothing waits for the device or copies from or to the host, and states are advanced where they
/// lie: a call can be captured in a graph.
class DeviceStep {
 public:
  /// Whether the model lies on a CUDA device and its attention layers, if any, can be stepped
  /// there.
  static bool supports(const model::Decoder& decoder);

  /// The decoder must outlive it.
  explicit DeviceStep(const model::Decoder& decoder);

  /// Reads ids [B] int64 on the device; the logits that follow, [B, vocab] of the model's dtype.
  /// positions [B] int64 there: how many tokens each sequence has read; undefined without attention
  /// layers, whose states are caches (attention_cache.h). Defined tensors of the state, [B, ...],
  /// keep their place; undefined ones, of sequences that have read nothing, are made. The state's
  /// position is left alone.
  at::Tensor operator()(const at::Tensor& ids, const at::Tensor& positions,
                        model::DecoderState& state) const;

  /// Whether the layers are steps of kernels, and not the decoder's.
  bool fused() const { return !layers_.empty(); }

 private:
  // A layer's weights as the kernels read them.
  struct Layer {
    DeviceMixer mixer;
    at::Tensor gate_up;              // [2 I, D], undefined without an MLP
    at::Tensor attn_norm, mlp_norm;  // float32
  };

  at::Tensor by_decoder(const at::Tensor& ids, model::DecoderState& state) const;
  void mlp(size_t layer, at::Tensor& x) const;
  at::Tensor product_of_norm(const at::Tensor& x, const at::Tensor& norm,
                             const at::Tensor& weight) const;

  const model::Decoder& decoder_;
  std::vector<Layer> layers_;  // empty: the decoder runs
  at::Tensor norm_;            // float32
};

}  // namespace mdn::generate
