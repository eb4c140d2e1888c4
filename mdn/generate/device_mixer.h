// What a layer does between the product that reads its input and the one that leaves it, for one
// token of each of several sequences: launches of kernels on CUDA.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>

#include "mdn/layers/mixer.h"

namespace mdn::generate {

inline constexpr const char* kDeviceStep = "a step on the device";  // in errors

/// What the layers of a step share besides the residual stream.
class StepShared {
 public:
  /// positions [B] int64 on the device: tokens that each sequence has read. Only attention layers
  /// want them.
  explicit StepShared(at::Tensor positions) : positions_(std::move(positions)) {}

  const at::Tensor& positions() const { return positions_; }
  /// `count` times the number, float32 on the device of `like`; made when a layer first asks.
  const float* numbers(double number, int64_t count, const at::Tensor& like);

 private:
  at::Tensor positions_;
  std::map<double, at::Tensor> made_;
};

/// In float32 and contiguous, as kernels read them; an undefined tensor stays one.
at::Tensor wide(const at::Tensor& t);

/// What kernels read of a mixer's weights, in float32; undefined where it has no such part. Those
/// of the published names are as there.
struct MixerNumbers {
  at::Tensor q_conv, k_conv, v_conv;  // [channels, 1, W]; Mamba2: of B, C and x
  at::Tensor q_bias, k_bias, v_bias;  // [channels], of Mamba2's convolution or attention
  at::Tensor correction;              // [H]: q <- q - correction k
  at::Tensor A_log, dt_bias;
  at::Tensor Mu_log, mu_bias, log_factor;
  at::Tensor key_scale;  // [H], of Comba
  at::Tensor o_norm;
  at::Tensor skip;            // [E], of Mamba2
  at::Tensor q_norm, k_norm;  // [d], of attention
};

/// A convolution, gates, a step of the operator, a norm with the gate: a launch each, and for
/// Comba's prediction another, for Kimi Delta Attention two products of low rank. Attention is
/// three launches, and its state a cache of fixed capacity (attention_cache.h).
class DeviceMixer {
 public:
  /// Whether there are kernels for the layer in this type.
  static bool supports(const layers::Mixer& mixer, at::ScalarType type);

  /// The mixer must outlive it.
  DeviceMixer(const layers::Mixer& mixer, at::ScalarType type);

  /// [columns, D]: all that reads the layer's input, packed (a copy), rows filled up with zeros.
  const at::Tensor& in() const { return in_; }
  /// [D, E], the layer's last product.
  const at::Tensor& out() const { return out_; }

  /// The product with in() [B, columns], contiguous -> what out() reads [B, E]. The state is
  /// advanced where it lies; undefined tensors are made, but for attention's.
  at::Tensor operator()(const at::Tensor& projected, StepShared& shared,
                        layers::MixerState& state) const;

 private:
  const layers::Mixer& mixer_;
  at::Tensor in_, out_;
  MixerNumbers numbers_;
};

}  // namespace mdn::generate
