// Causal softmax attention with rotary positions, grouped heads and an optional sliding window.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "mdn/layers/sequences.h"

namespace mdn::layers {

struct AttentionOptions {
  int64_t num_heads = 1;
  int64_t num_kv_heads = 1;
  int64_t head_dim = 0;
  double rope_theta = 10000.0;
  std::optional<int64_t> window;  // a query sees itself and window - 1 tokens before it
};

struct AttentionWeights {
  at::Tensor q_proj, k_proj, v_proj, o_proj;  // [heads d, D], [kv d, D] twice, [D, heads d]
  at::Tensor q_bias, k_bias, v_bias;          // undefined without qkv_bias
};

/// Keys and values of the tokens so far (at most `window` of them), rotated. Undefined: none.
struct AttentionState {
  at::Tensor k, v;       // [B, kv heads, tokens, d]
  int64_t position = 0;  // of the next token
};

/// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
at::Tensor attention(const AttentionOptions& options, const AttentionWeights& weights,
                     const at::Tensor& x, const Sequences& sequences, AttentionState* state);

}  // namespace mdn::layers
