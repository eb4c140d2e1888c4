// short_conv: the causal depthwise convolution with SiLU in front of q, k and v.
//
//     a[t, c] = sum_w weight[c, w] x[t - (W-1) + w, c]      taps before a sequence's start are zero
//     y[t, c] = silu(a[t, c]) = a sigmoid(a)
//
// x, y [B, T, C], weight [C, W], all contiguous float32. With cu_seqlens [N + 1] (B = 1) each
// sequence starts afresh, as in momentum_delta_rule.h. Nothing is allocated: the caller gives
// `workspace` bytes, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdn::kernels {

struct ShortConvProblem {
  int64_t B = 1, T = 0, C = 0, W = 4;
  const int64_t* cu_seqlens = nullptr;
  int64_t N = 1;
};

namespace cpu {

size_t short_conv_workspace(const ShortConvProblem& problem);
void short_conv_forward(const ShortConvProblem& problem, const float* x, const float* weight,
                        float* y, void* workspace);
/// d_x and d_weight are overwritten; the same bits for any number of threads.
void short_conv_backward(const ShortConvProblem& problem, const float* x, const float* weight,
                         const float* d_y, float* d_x, float* d_weight, void* workspace);

/// [C, W] with the current token's tap last, as weights are kept -> [W, C] with it first.
void short_conv_taps(int64_t C, int64_t W, const float* weight, float* taps);

/// One token of B sequences: x, y [B, C], taps [W, C] as above. state [B, W-1, C] holds each
/// sequence's last W-1 inputs, oldest first, and is advanced.
void short_conv_step(int64_t B, int64_t C, int64_t W, const float* x, const float* taps,
                     float* state, float* y);

}  // namespace cpu
}  // namespace mdn::kernels
