// attention_step: one token of softmax attention with rotary positions, for sequences whose keys
// and values lie in caches. Sequence b has read positions[b] tokens; with p = positions[b],
//
//     q, k  <- q + q_bias, k + k_bias; of each head, where it has a norm, RMSNorm; rotated by p
//     cache of b at token p  <- k, v + v_bias
//     o = softmax(q kᵀ / sqrt(d)) v over the tokens max(0, p + 1 - window) to p
//
// Query head j reads the keys and values of head j / (heads / kv_heads). Only CUDA has a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {
using Stream = void*;

struct AttentionStep {
  int64_t B = 1;
  int64_t heads = 1;
  int64_t kv_heads = 1;
  int64_t d = 0;                   // of a head
  int64_t capacity = 0;            // tokens of a cache; positions are below it
  int64_t window = 0;              // 0: all tokens are seen
  double theta = 10000;            // of the rotation
  double eps = 0;                  // of the norms
  DType dtype = DType::kBFloat16;  // of q, k, v, the caches and o
  const void* q = nullptr;         // rows of heads d neighbours
  const void* k = nullptr;         // rows of kv_heads d neighbours, as v
  const void* v = nullptr;
  int64_t stride = 0;             // elements from row to row of q, k and v
  const float* q_bias = nullptr;  // [heads d] or null
  const float* k_bias = nullptr;  // [kv_heads d] or null, as v_bias
  const float* v_bias = nullptr;
  const float* q_norm = nullptr;  // [d] or null, as k_norm
  const float* k_norm = nullptr;
  const int64_t* positions = nullptr;  // [B]
  void* k_cache = nullptr;             // [B, kv_heads, capacity, d], as v_cache
  void* v_cache = nullptr;
  void* workspace = nullptr;  // attention_step_workspace bytes
  void* o = nullptr;          // [B, heads d]
};

/// d a multiple of 8 up to 256. Computed in float32; rows and caches start on multiples of 16
/// bytes. The number of launches and their size depend on the capacity and not on positions, so
/// that a step can be captured in a graph. Work is queued on `stream` (a cudaStream_t) of the
/// current device and nothing waits for it.
std::string attention_step_unsupported(DType dtype, int64_t d);  // empty: supported
size_t attention_step_workspace(const AttentionStep& call);
void attention_step(const AttentionStep& call, Stream stream);

}  // namespace mdn::kernels::cuda
