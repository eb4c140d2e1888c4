// kimi_delta_rule over whole sequences as a program of batched matrix operations, a chunk of 64
// tokens at a time: what float32 and 16-bit tensors on the CPU and all tensors on CUDA run. The
// formulas and their gradient are derived in docs/math/kimi_delta_rule.md.
//
// Decays are only ever multiplied with each other: no logarithm, no division, no difference of
// sums, so that every entry of a mask has the relative accuracy of the arithmetic for any decay, 0
// included.
//
// Inside, everything is float32 (float64 for float64 tensors). Memory beside inputs and results:
// a state a chunk, which the backward pass reads, and temporaries of a piece of the problem whose
// size does not depend on it (at least one chunk of all sequences for one query/key head).
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace mdn::ops::kimi_chunks {

inline constexpr int64_t kChunk = 64;  // tokens, a power of two

/// Arguments as mdn/ops/kimi_delta_rule.h has them, already checked.
struct Call {
  at::Tensor q, k, v, alpha, beta;
  std::optional<at::Tensor> initial_S;  // [N, HV, V, K]
  std::vector<int64_t> bounds;          // 0, ..., T of packed sequences (B = 1); empty: rows
  double scale = 1;
  bool l2norm = false;
};

struct Gradients {
  at::Tensor q, k, v, alpha, beta;
  at::Tensor initial_S;  // [N, HV, V, K], whether or not one was given
};

/// Returns o and the final states. Where `states` is defined, [at least as many as there are
/// chunks, HV, V, K], it receives the state before each chunk.
std::tuple<at::Tensor, at::Tensor> forward(const Call& call, const at::Tensor& states);

/// `states` as the forward pass of the same call left them; empty: they are computed again.
/// d_final_S absent: zeros.
Gradients backward(const Call& call, at::Tensor states, const at::Tensor& d_o,
                   const std::optional<at::Tensor>& d_final_S);

}  // namespace mdn::ops::kimi_chunks
