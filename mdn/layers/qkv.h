// Queries, keys and values of a linear-attention layer: projection, short convolution, SiLU.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>
#include <utility>
#include <vector>

#include "mdn/layers/options.h"
#include "mdn/layers/project.h"
#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// A tensor that a sequence carries from token to token, by its name in state files.
using StateField = std::pair<const char*, at::Tensor*>;

struct QkvWeights {
  at::Tensor q_proj, k_proj;      // [H K, D]
  at::Tensor v_proj;              // [HV V, D]
  at::Tensor q_conv1d, k_conv1d;  // [H K, 1, W], undefined without short convolution
  at::Tensor v_conv1d;            // [HV V, 1, W]
};

/// The convolutions' last W - 1 inputs, oldest first; undefined: a fresh start.
struct ConvStates {
  at::Tensor conv_q, conv_k, conv_v;  // [B, W-1, channels]

  std::vector<StateField> conv_fields();
};

/// The shape of a layer's state field for B sequences: S and M, else a field of ConvStates, which
/// is empty where the layer has no convolution.
std::vector<int64_t> head_state_shape(const HeadOptions& options, std::string_view field,
                                      int64_t B);

struct Qkv {
  at::Tensor q, k;  // [B, T, H, K]
  at::Tensor v;     // [B, T, HV, V]
};

/// silu(conv(W x)) for each of q, k, v, or silu(W x) without a convolution. x [B, T, D]. A state is
/// read and advanced.
Qkv query_key_value(const HeadOptions& options, const QkvWeights& weights, const Projected& x,
                    const Sequences& sequences, ConvStates* state);

}  // namespace mdn::layers
