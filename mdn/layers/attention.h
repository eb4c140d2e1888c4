// Causal softmax attention with rotary positions, grouped heads and an optional sliding window.
#pragma once

#include "mdn/layers/options.h"
#include "mdn/layers/qkv.h"
#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// Whether attention's backward pass on a GPU sums in one order, which gives the same bits in every
/// run and takes longer; for the whole process, at first not. On the CPU it always does.
void set_deterministic_attention(bool on);

inline constexpr double kHeadNormEps = 1e-5;  // of q_norm and k_norm, whatever the model's own is

struct AttentionWeights {
  at::Tensor q_proj, k_proj, v_proj, o_proj;  // [heads d, D], [kv d, D] twice, [D, heads d]
  at::Tensor q_bias, k_bias, v_bias;          // undefined without qkv_bias
  at::Tensor q_norm, k_norm;                  // [d], undefined without qk_norm
};

/// Keys and values of the tokens so far (of those that a window still shows), rotated. Undefined:
/// none.
struct AttentionState {
  at::Tensor k, v;       // [B, kv heads, tokens, d]
  int64_t position = 0;  // of the next token

  std::vector<StateField> fields() { return {{"k", &k}, {"v", &v}}; }
};

struct Attention {
  using State = AttentionState;
  AttentionOptions options;
  AttentionWeights weights;

  /// x [B, T, D] -> [B, T, D]. With a state, x continues the sequences and the state is advanced.
  at::Tensor operator()(const at::Tensor& x, const Sequences& sequences, State* state) const;

  /// The shape of a state's field for B sequences; -1 stands for any number of tokens.
  std::vector<int64_t> state_shape(std::string_view field, int64_t B) const;
};

}  // namespace mdn::layers
