// What both passes of the short convolution share: a lane's channels, its weights, the inputs
// before a token, and the call.
#pragma once

#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/sequences.cuh"
#include "mdn/kernels/cuda/vectors.cuh"
#include "mdn/kernels/short_conv.h"

namespace mdn::kernels::cuda::short_conv {

inline constexpr int kLanes = 32;    // side by side along channels
inline constexpr int kChannels = 4;  // of a lane
inline constexpr int kTaps = 4;  // of every kernel: a narrower convolution's oldest weights are 0

/// What a call has besides x and weight.
enum class Extra { kNothing, kCorrection, kBias };

inline int64_t ratio_up(int64_t n, int64_t of) {
  return (n + of - 1) / of;
}

inline int64_t channel_blocks(const ShortConvProblem& p) {
  return ratio_up(p.C, kLanes * kChannels);
}

/// weight is [C, width].
__device__ inline void load_weight(const float* weight, int64_t channel, int width,
                                   float (&w)[kChannels][kTaps]) {
  float all[kChannels * kTaps] = {};
  if (width == kTaps) {
    load_run(weight + channel * kTaps, all);
  } else {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
#pragma unroll
      for (int tap = 1; tap < kTaps; ++tap) {
        const int own = tap - (kTaps - width);
        if (own >= 0) {
          all[i * kTaps + tap] = weight[(channel + i) * width + own];
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      w[i][tap] = all[i * kTaps + tap];
    }
  }
}

/// The inputs before a token that it reads, newest first; zeros before the sequence's start.
struct Past {
  static constexpr int kDepth = kTaps - 1;
  float x[kDepth][kChannels];

  __device__ void clear() {
#pragma unroll
    for (int j = 0; j < kDepth; ++j) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        x[j][i] = 0;
      }
    }
  }
  /// Of the token at `x`, which has at least `count` inputs of its sequence before it.
  template <class T>
  __device__ void load(const T* x_now, int64_t stride, int count) {
    clear();
#pragma unroll
    for (int j = 0; j < kDepth; ++j) {
      if (j < count) {
        load_run(x_now - (j + 1) * stride, x[j]);
      }
    }
  }
  __device__ void push(const float (&now)[kChannels]) {
#pragma unroll
    for (int j = kDepth - 1; j > 0; --j) {
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        x[j][i] = x[j - 1][i];
      }
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      x[0][i] = now[i];
    }
  }
  /// bias[c] + sum_w weight[c, w] x[t - (W-1) + w, c]
  __device__ void convolve(const float (&now)[kChannels], const float (&w)[kChannels][kTaps],
                           const float (&bias)[kChannels], float (&a)[kChannels]) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      a[i] = bias[i] + w[i][kTaps - 1] * now[i];
#pragma unroll
      for (int j = 0; j < kDepth; ++j) {
        a[i] += w[i][kTaps - 2 - j] * x[j][i];
      }
    }
  }
};

struct Call {
  int64_t tokens;
  int channels;
  unsigned columns;  // blocks along channels
  SequenceTable sequences;
  const void* x;
  int64_t x_stride;
  int width;
  const float* weight;
  const float* bias;
  ShortConvCorrection correction;
};

/// f(std::integral_constant<Extra, ...>).
template <class Arguments, class F>
void with_extra(const Arguments& call, F&& f) {
  if (call.correction.minus != nullptr) {
    return f(std::integral_constant<Extra, Extra::kCorrection>{});
  }
  if (call.bias != nullptr) {
    return f(std::integral_constant<Extra, Extra::kBias>{});
  }
  f(std::integral_constant<Extra, Extra::kNothing>{});
}

template <class Arguments>
Call call_of(const Arguments& arguments) {
  const ShortConvProblem& p = arguments.problem;
  return {.tokens = p.B * p.T,
          .channels = static_cast<int>(p.C),
          .columns = static_cast<unsigned>(channel_blocks(p)),
          .sequences = {.cu_seqlens = p.cu_seqlens, .count = p.N, .length = p.T},
          .x = arguments.x,
          .x_stride = arguments.x_stride,
          .width = static_cast<int>(p.W),
          .weight = arguments.weight,
          .bias = arguments.bias,
          .correction = arguments.correction};
}

}  // namespace mdn::kernels::cuda::short_conv
