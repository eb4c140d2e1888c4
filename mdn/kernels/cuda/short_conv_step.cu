// The convolution of a single token: a thread has two channels of a sequence, reads their last
// W - 1 inputs and moves them on by one. Everything is small, so what counts is that all of a
// layer's convolutions are one launch.
#include <type_traits>

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"
#include "mdn/kernels/short_conv.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 2;  // of a thread

/// silu(bias[c] + sum_w weight[c, w] x[t - (W-1) + w, c]), as it is stored; advances the state.
template <class T, int kTaps>
__device__ void convolve(const ShortConvStepPart& part, int64_t b, int64_t c,
                         float (&y)[kChannels]) {
  constexpr int kPast = kTaps - 1;
  T* const state = static_cast<T*>(part.state) + b * kPast * part.state_stride + c;
  Run<T, kChannels> x[kTaps];  // oldest first
#pragma unroll
  for (int i = 0; i < kPast; ++i) {
    x[i].load(state + i * part.state_stride);
  }
  x[kPast].load(static_cast<const T*>(part.x) + b * part.x_stride + c);
  float w[kChannels * kTaps];
#pragma unroll
  for (int i = 0; i < kChannels * kTaps; ++i) {
    w[i] = part.weight[c * kTaps + i];
  }
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    y[i] = part.bias != nullptr ? part.bias[c + i] : 0.0f;
  }
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
    float now[kChannels];
    x[tap].unpack(now);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      y[i] += w[i * kTaps + tap] * now[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kPast; ++i) {
    x[i + 1].store(state + i * part.state_stride);
  }
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    y[i] *= sigmoid<T>(y[i]);
  }
}

template <class T>
__device__ void store(const ShortConvStepPart& part, int64_t b, int64_t c,
                      const float (&y)[kChannels]) {
  store_run(static_cast<T*>(part.y) + b * part.C + c, y);
}

template <class T, int kTaps>
__global__ void __launch_bounds__(kThreads)
    short_conv_step_kernel(const ShortConvStep call, int64_t pairs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  let_next_start();
  wait_for_previous();
  if (i >= call.B * pairs) {
    return;
  }
  const int64_t b = i / pairs;
  int64_t c = i % pairs * kChannels;
  float y[kChannels];
  // The second part goes with the first where it corrects it, else it has threads of its own.
  const bool corrects = call.scale != nullptr;
  if (corrects && c < call.parts[0].C) {
    float minus[kChannels];
    convolve<T, kTaps>(call.parts[1], b, c, minus);
    store<T>(call.parts[1], b, c, minus);
    convolve<T, kTaps>(call.parts[0], b, c, y);
    const float scale = call.scale[c / call.channels];
#pragma unroll
    for (int j = 0; j < kChannels; ++j) {
      y[j] -= scale * to_float(from_float<T>(minus[j]));
    }
    store<T>(call.parts[0], b, c, y);
    return;
  }
#pragma unroll
  for (int part = 0; part < ShortConvStep::kMaxParts; ++part) {
    if (part < call.count && !(corrects && part == 1)) {
      if (c >= 0 && c < call.parts[part].C) {
        convolve<T, kTaps>(call.parts[part], b, c, y);
        store<T>(call.parts[part], b, c, y);
      }
      c -= call.parts[part].C;
    }
  }
}

}  // namespace

void short_conv_step(const ShortConvStep& call, Stream stream) {
  int64_t channels = 0;
  for (int part = 0; part < call.count; ++part) {
    channels += call.scale != nullptr && part == 1 ? 0 : call.parts[part].C;
  }
  const int64_t pairs = channels / kChannels;
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const auto queue = [&](auto taps) {
      launch_early("launch of short_conv_step", short_conv_step_kernel<T, decltype(taps)::value>,
                   (call.B * pairs + kThreads - 1) / kThreads, kThreads, 0,
                   static_cast<cudaStream_t>(stream), call, pairs);
    };
    switch (call.W) {
      case 1:
        return queue(std::integral_constant<int, 1>{});
      case 2:
        return queue(std::integral_constant<int, 2>{});
      case 3:
        return queue(std::integral_constant<int, 3>{});
      default:
        return queue(std::integral_constant<int, 4>{});
    }
  });
}

}  // namespace mdn::kernels::cuda
