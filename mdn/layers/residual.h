// The two halves of a decoder's block, with their norms and residual sums. On CUDA without a state
// each is one operator where mdn/ops has it; else they are composed of the layers.
#pragma once

#include <ATen/core/Tensor.h>

#include "mdn/layers/mixer.h"
#include "mdn/layers/mlp.h"
#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// x + mix(mixer, rms_norm(x, norm, eps)); x [B, T, D], norm [D]. The mixer computes in `type`,
/// that of x unless the residual sum is kept in float32. A state as in mix.
at::Tensor residual_mix(const Mixer& mixer, const at::Tensor& norm, double eps, const at::Tensor& x,
                        at::ScalarType type, const Sequences& sequences, MixerState* state);

/// The same as one node of the graph that keeps x and its projections only; for mixers in two
/// halves. Nothing where the mixer has none.
std::optional<at::Tensor> recomputed_residual_mix(const Mixer& mixer, const at::Tensor& norm,
                                                  double eps, const at::Tensor& x,
                                                  at::ScalarType type, const Sequences& sequences);

/// x + mlp(weights, rms_norm(x, norm, eps)).
at::Tensor residual_mlp(const MlpWeights& weights, const at::Tensor& norm, double eps,
                        const at::Tensor& x);

}  // namespace mdn::layers
