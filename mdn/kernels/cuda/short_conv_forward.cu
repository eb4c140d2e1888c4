// The short convolution's forward pass: a thread has a few channels of a few tokens, all loaded at
// once. Bound by memory.
#include <type_traits>

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/short_conv_parts.cuh"

namespace mdn::kernels::cuda {
namespace short_conv {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kLanes * kWarps;
constexpr int kTokens = 8;  // of a warp

/// Blocks of the forward pass that a multiprocessor holds, as the registers allow.
template <class T, Extra kExtra>
inline constexpr int kBlocks = sizeof(T) == 4              ? 4
                               : kExtra == Extra::kNothing ? 8
                               : kExtra == Extra::kBias    ? 7
                                                           : 6;

/// A thread has kChannels channels of kTokens tokens and loads all that it reads at once, what
/// other threads read too by way of L1.
template <class T, Extra kExtra>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kExtra>) forward_kernel(Call call, T* y) {
  constexpr bool kCorrect = kExtra == Extra::kCorrection;
  constexpr int kBefore = kTaps - 1;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const int channel = (static_cast<int>(blockIdx.x % call.columns) * kLanes + lane) * kChannels;
  const int64_t first = (static_cast<int64_t>(blockIdx.x / call.columns) * kWarps + warp) * kTokens;
  if (first >= call.tokens || channel >= call.channels) {
    return;
  }
  const T* const x = static_cast<const T*>(call.x) + first * call.x_stride + channel;
  const int64_t at = first * call.channels + channel;
  const int tokens = static_cast<int>(min(call.tokens - first, int64_t{kTokens}));
  let_next_start();
  wait_for_previous();
  Run<T, kChannels> inputs[kBefore + kTokens];
  [[maybe_unused]] Run<T, kChannels> others[kTokens];
#pragma unroll
  for (int i = 0; i < kBefore + kTokens; ++i) {
    inputs[i].clear();
    if (i < kBefore ? first + i >= kBefore : i - kBefore < tokens) {
      inputs[i].load(x + (i - kBefore) * call.x_stride);
    }
  }
  if constexpr (kCorrect) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      others[i].clear();
      if (i < tokens) {
        others[i].load(static_cast<const T*>(call.correction.minus) + at +
                       static_cast<int64_t>(i) * call.channels);
      }
    }
  }
  float w[kChannels][kTaps], bias[kChannels] = {}, scale = 0;
  load_weight(call.weight, channel, call.width, w);
  if constexpr (kExtra == Extra::kBias) {
    load_run(call.bias + channel, bias);
  }
  if constexpr (kCorrect) {
    scale = expf(call.correction.log_scale[channel / static_cast<int>(call.correction.channels)]);
  }
  // Where the sequence ends, counted from `first`.
  SequenceWalk sequence(call.sequences, first);
  const auto end_of = [&] {
    return static_cast<int>(min(sequence.end() - first, int64_t{kTokens}));
  };
  int end = end_of();
  Past past;
#pragma unroll
  for (int j = 0; j < kBefore; ++j) {
    if (first - sequence.start() <= j) {
      inputs[kBefore - 1 - j].clear();
    }
    inputs[kBefore - 1 - j].unpack(past.x[j]);
  }
  y += at;
  const auto walk = [&]<bool kWhole>(std::bool_constant<kWhole>) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (!kWhole && i == end) {
        if (i == tokens) {
          break;
        }
        sequence.next();
        end = end_of();
        past.clear();
      }
      float now[kChannels], a[kChannels];
      [[maybe_unused]] float other[kChannels];
      inputs[kBefore + i].unpack(now);
      past.convolve(now, w, bias, a);
      past.push(now);
      if constexpr (kCorrect) {
        others[i].unpack(other);
      }
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        a[c] *= sigmoid<T>(a[c]);
        if constexpr (kCorrect) {
          a[c] -= scale * other[c];
        }
      }
      store_run(y + static_cast<int64_t>(i) * call.channels, a);
    }
  };
  // Without a question between the tokens where no sequence ends among them.
  if (end == kTokens) {
    walk(std::true_type{});
  } else {
    walk(std::false_type{});
  }
}

}  // namespace
}  // namespace short_conv

std::string short_conv_unsupported(const ShortConvProblem& p) {
  if (p.W < 1 || p.W > short_conv::kTaps) {
    return "the width must be 1 to 4";
  }
  return p.C % 8 == 0 ? "" : "the channels must be a multiple of 8";
}

void short_conv_forward(const ShortConvForward& forward, Stream stream) {
  using namespace short_conv;
  const ShortConvProblem& p = forward.problem;
  with_type(forward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_extra(forward, [&](auto extra) {
      launch_early("launch of short_conv_forward", forward_kernel<T, decltype(extra)::value>,
                   ratio_up(p.B * p.T, kTokens * kWarps) * channel_blocks(p), kThreads, 0,
                   static_cast<cudaStream_t>(stream), call_of(forward), static_cast<T*>(forward.y));
    });
  });
}

}  // namespace mdn::kernels::cuda
