// short_conv: the causal depthwise convolution with SiLU in front of q, k and v.
//
//     a[t, c] = bias[c] + sum_w weight[c, w] x[t - (W-1) + w, c]
//     y[t, c] = silu(a[t, c]) = a sigmoid(a)
//
// x before a sequence's start is zero. x, y [B, T, C], weight [C, W], bias [C] or null (zeros),
// contiguous; float32 on the CPU, any DType but float64 on CUDA,
// where the rows of x and d_x may also be columns of wider rows. With cu_seqlens [N + 1] (B = 1,
// memory of the backend) each sequence starts afresh, as in momentum_delta_rule.h. Nothing is
// allocated: the caller gives `workspace` bytes, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mdn/core/dtype.h"

namespace mdn::kernels {

struct ShortConvProblem {
  int64_t B = 1, T = 0, C = 0, W = 4;
  const int64_t* cu_seqlens = nullptr;
  int64_t N = 1;
};

namespace cpu {

size_t short_conv_workspace(const ShortConvProblem& problem);
void short_conv_forward(const ShortConvProblem& problem, const float* x, const float* weight,
                        const float* bias, float* y, void* workspace);
/// d_x, d_weight and d_bias (present exactly when bias is) are overwritten; the same bits for any
/// number of threads.
void short_conv_backward(const ShortConvProblem& problem, const float* x, const float* weight,
                         const float* bias, const float* d_y, float* d_x, float* d_weight,
                         float* d_bias, void* workspace);

/// [C, W] with the current token's tap last, as weights are kept -> [W, C] with it first.
void short_conv_taps(int64_t C, int64_t W, const float* weight, float* taps);

/// One token of B sequences, without a bias: x, y [B, C], taps [W, C] as above. state [B, W-1, C]
/// holds each sequence's last W-1 inputs, oldest first, and is advanced.
void short_conv_step(int64_t B, int64_t C, int64_t W, const float* x, const float* taps,
                     float* state, float* y);

}  // namespace cpu

/// The layer's output correction, for the convolution of q once that of k is there:
///
///     y[t, c] = silu(a[t, c]) - exp(log_scale[c / channels]) minus[t, c]
///
/// and, for the convolution of k, its gradient: with the gradient d_minus of the y above,
///
///     d_y  <- d_y - exp(log_scale[h]) d_minus
///     d_log_scale[h] = -exp(log_scale[h]) sum over t, c of d_minus[t, c] silu(a[t, c])
struct ShortConvCorrection {
  const void* minus = nullptr;       // [B, T, C] of the problem's dtype: k, or the gradient of q
  const float* log_scale = nullptr;  // [C / channels]
  int64_t channels = 0;              // of a head; a multiple of 8
};

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it; sums
/// over tokens have one order, so the same call gives the same bits. W at most 4, C a multiple of
/// 8, pointers and strides of rows multiples of 16 bytes; computed in float32, weights in float32.
namespace cuda {
using Stream = void*;

struct ShortConvForward {
  ShortConvProblem problem;
  DType dtype = DType::kBFloat16;  // of x, y and their gradients
  const void* x = nullptr;
  int64_t x_stride = 0;  // elements from token to token, at least C
  const float* weight = nullptr;
  const float* bias = nullptr;     // not with a correction
  void* y = nullptr;               // contiguous
  ShortConvCorrection correction;  // minus null: none
};

struct ShortConvBackward {
  ShortConvProblem problem;
  DType dtype = DType::kBFloat16;
  const void* x = nullptr;
  int64_t x_stride = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;
  const void* d_y = nullptr;  // contiguous
  void* d_x = nullptr;
  int64_t d_x_stride = 0;
  float* d_weight = nullptr;
  float* d_bias = nullptr;         // present exactly when the bias is
  ShortConvCorrection correction;  // minus null: none
  float* d_log_scale = nullptr;    // present exactly when the correction is
  void* workspace = nullptr;       // short_conv_backward_workspace bytes
};

/// One of the convolutions that a step makes side by side.
struct ShortConvStepPart {
  int64_t C = 0;
  const void* x = nullptr;        // [B, C]
  int64_t x_stride = 0;           // elements from sequence to sequence, at least C
  const float* weight = nullptr;  // [C, W]
  const float* bias = nullptr;    // [C] or null
  void* state = nullptr;          // [B, W-1, C]: the last W-1 inputs, oldest first; advanced
  int64_t state_stride = 0;       // elements from input to input, at least C
  void* y = nullptr;              // [B, C], contiguous
};

/// One token of B sequences. x, y and the states are of `dtype`.
struct ShortConvStep {
  static constexpr int kMaxParts = 3;
  int64_t B = 1, W = 4;
  DType dtype = DType::kBFloat16;
  int count = 1;
  ShortConvStepPart parts[kMaxParts] = {};
  /// [C / channels] or null. Where given the first part is corrected by the second, which has as
  /// many channels: y[0] = silu(a[0]) - scale[c / channels] y[1].
  const float* scale = nullptr;
  int64_t channels = 0;
};

std::string short_conv_unsupported(const ShortConvProblem& problem);  // empty: supported
size_t short_conv_backward_workspace(const ShortConvProblem& problem);
void short_conv_forward(const ShortConvForward& call, Stream stream);
void short_conv_backward(const ShortConvBackward& call, Stream stream);
void short_conv_step(const ShortConvStep& call, Stream stream);
}  // namespace cuda
}  // namespace mdn::kernels
