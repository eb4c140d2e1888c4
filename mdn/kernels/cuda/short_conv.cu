// The convolution over a run of tokens: a lane holds the same few channels of a run of kRun tokens
// and walks along it with the last W - 1 inputs in registers, so each input is read once (and W - 1
// more at the start of a run). Bound by memory.
#include "mdn/kernels/short_conv.h"

#include <type_traits>

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/sequences.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;  // side by side along channels
constexpr int kWarps = 8;   // one run of tokens each
constexpr int kThreads = kLanes * kWarps;
constexpr int kRun = 32;   // tokens
constexpr int kAhead = 4;  // tokens whose loads are in flight together
constexpr int kForwardChannels = 8;
constexpr int kBackwardChannels = 4;
constexpr int kMaxWidth = 4;

int64_t run_blocks(const ShortConvProblem& p) {
  return (p.B * p.T + kRun * kWarps - 1) / (kRun * kWarps);
}

int64_t channel_blocks(const ShortConvProblem& p, int channels) {
  return (p.C + kLanes * channels - 1) / (kLanes * channels);
}

struct Place {
  int64_t channel;      // the lane's first
  int64_t first, last;  // tokens of the run
};

template <int kChannels>
__device__ Place place_of(int64_t tokens, int64_t columns) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  Place place;
  place.channel = (static_cast<int64_t>(blockIdx.x) % columns * kLanes + lane) * kChannels;
  place.first = (static_cast<int64_t>(blockIdx.x) / columns * kWarps + warp) * kRun;
  place.last = min(place.first + kRun, tokens);
  return place;
}

template <int kTaps, int kChannels>
__device__ void load_weight(const float* weight, int64_t channel, float (&w)[kChannels][kTaps]) {
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      w[i][tap] = weight[(channel + i) * kTaps + tap];
    }
  }
}

/// The W - 1 inputs before a token, newest first; zeros before the sequence's start.
template <int kTaps, int kChannels>
struct Past {
  static constexpr int kDepth = kTaps > 1 ? kTaps - 1 : 1;
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
  template <class T>
  __device__ void load(const T* column, int64_t stride, int64_t token, int64_t start) {
    clear();
#pragma unroll
    for (int j = 0; j < kTaps - 1; ++j) {
      if (token - 1 - j >= start) {
        load_run(column + (token - 1 - j) * stride, x[j]);
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
  /// sum_w weight[c, w] x[t - (W-1) + w, c]
  __device__ void convolve(const float (&now)[kChannels], const float (&w)[kChannels][kTaps],
                           float (&a)[kChannels]) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      a[i] = w[i][kTaps - 1] * now[i];
#pragma unroll
      for (int j = 0; j < kTaps - 1; ++j) {
        a[i] += w[i][kTaps - 2 - j] * x[j][i];
      }
    }
  }
};

struct Call {
  int64_t tokens, channels;
  SequenceTable sequences;
  int64_t columns;  // blocks along channels
  const void* x;
  int64_t x_stride;
  const float* weight;
  ShortConvCorrection correction;
};

template <class T, int kTaps, bool kCorrect>
__global__ void __launch_bounds__(kThreads) short_conv_forward_kernel(Call call, T* y) {
  constexpr int kChannels = kForwardChannels;
  const Place place = place_of<kChannels>(call.tokens, call.columns);
  if (place.channel >= call.channels || place.first >= place.last) {
    return;
  }
  const T* x = static_cast<const T*>(call.x) + place.channel;
  const T* minus = static_cast<const T*>(call.correction.minus) + place.channel;
  y += place.channel;
  float scale = 0;
  if constexpr (kCorrect) {
    scale = expf(call.correction.log_scale[place.channel / call.correction.channels]);
  }
  float w[kChannels][kTaps];
  load_weight(call.weight, place.channel, w);
  SequenceWalk sequence(call.sequences, place.first);
  Past<kTaps, kChannels> past;
  past.load(x, call.x_stride, place.first, sequence.start());
  for (int64_t group = place.first; group < place.last; group += kAhead) {
    Run<T, kChannels> raw[kAhead], raw_minus[kAhead];
#pragma unroll
    for (int g = 0; g < kAhead; ++g) {
      if (group + g < place.last) {
        raw[g].load(x + (group + g) * call.x_stride);
        if constexpr (kCorrect) {
          raw_minus[g].load(minus + (group + g) * call.channels);
        }
      }
    }
#pragma unroll
    for (int g = 0; g < kAhead; ++g) {
      const int64_t t = group + g;
      if (t < place.last) {
        if (t == sequence.end()) {
          sequence.next();
          past.clear();
        }
        float now[kChannels], a[kChannels];
        raw[g].unpack(now);
        past.convolve(now, w, a);
        past.push(now);
        float other[kChannels];
        if constexpr (kCorrect) {
          raw_minus[g].unpack(other);
        }
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          a[i] *= sigmoid<T>(a[i]);
          if constexpr (kCorrect) {
            a[i] -= scale * other[i];
          }
        }
        store_run(y + t * call.channels, a);
      }
    }
  }
}

struct Gradients {
  const void* d_y;
  void* d_x;
  int64_t d_x_stride;
  float* d_weight;     // [run blocks, C, W] partial sums
  float* d_log_scale;  // [run blocks, C / kBackwardChannels] partial sums
};

// d_x[s] = sum_d weight[W-1-d] d_a[s+d] over the tokens s+d of the sequence: known once d_a[s+W-1]
// is, so the walk goes W - 1 tokens past the run and emits d_x that far behind.
template <class T, int kTaps, bool kCorrect>
__global__ void __launch_bounds__(kThreads)
    short_conv_backward_kernel(Call call, Gradients gradients) {
  constexpr int kChannels = kBackwardChannels;
  __shared__ float shared[kWarps][kTaps * kChannels * kLanes];
  const Place place = place_of<kChannels>(call.tokens, call.columns);
  const bool active = place.channel < call.channels && place.first < place.last;
  float d_w[kChannels][kTaps] = {};
  float d_scale = 0;
  if (active) {
    const T* x = static_cast<const T*>(call.x) + place.channel;
    const T* d_y = static_cast<const T*>(gradients.d_y) + place.channel;
    const T* minus = static_cast<const T*>(call.correction.minus) + place.channel;
    T* d_x = static_cast<T*>(gradients.d_x) + place.channel;
    float scale = 0;
    if constexpr (kCorrect) {
      scale = expf(call.correction.log_scale[place.channel / call.correction.channels]);
    }
    float w[kChannels][kTaps];
    load_weight(call.weight, place.channel, w);
    SequenceWalk sequence(call.sequences, place.first);
    Past<kTaps, kChannels> past, past_d;
    past.load(x, call.x_stride, place.first, sequence.start());
    past_d.clear();

    // Takes d_a of token t and writes d_x of token t - (W - 1), if that is the run's.
    const auto emit = [&](int64_t t, const float(&d_a)[kChannels]) {
      const int64_t s = t - (kTaps - 1);
      if (s >= place.first && s < place.last && s >= sequence.start()) {
        float sum[kChannels];
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          sum[i] = w[i][0] * d_a[i];
#pragma unroll
          for (int j = 0; j < kTaps - 1; ++j) {
            sum[i] += w[i][j + 1] * past_d.x[j][i];
          }
        }
        store_run(d_x + s * gradients.d_x_stride, sum);
      }
      past_d.push(d_a);
    };
    // The sequence has ended before token t.
    const auto flush = [&](int64_t t) {
      const float zero[kChannels] = {};
#pragma unroll
      for (int i = 0; i < kTaps - 1; ++i) {
        emit(t + i, zero);
      }
    };

    const int64_t stop = min(place.last + kTaps - 1, call.tokens);
    bool open = true;  // d_x of the last tokens is still due
    for (int64_t group = place.first; group < stop && open; group += kAhead) {
      Run<T, kChannels> raw[kAhead], raw_d[kAhead], raw_minus[kAhead];
#pragma unroll
      for (int g = 0; g < kAhead; ++g) {
        if (group + g < stop) {
          raw[g].load(x + (group + g) * call.x_stride);
          raw_d[g].load(d_y + (group + g) * call.channels);
          if constexpr (kCorrect) {
            raw_minus[g].load(minus + (group + g) * call.channels);
          }
        }
      }
#pragma unroll
      for (int g = 0; g < kAhead; ++g) {
        const int64_t t = group + g;
        if (t < stop && open) {
          if (t == sequence.end()) {
            flush(t);
            if (t >= place.last) {
              open = false;
            } else {
              sequence.next();
              past.clear();
              past_d.clear();
            }
          }
          if (open) {
            float now[kChannels], a[kChannels], d_a[kChannels];
            raw[g].unpack(now);
            raw_d[g].unpack(d_a);
            float other[kChannels] = {};
            if constexpr (kCorrect) {
              raw_minus[g].unpack(other);
            }
            past.convolve(now, w, a);
#pragma unroll
            for (int i = 0; i < kChannels; ++i) {
              const float s = sigmoid<T>(a[i]);
              if constexpr (kCorrect) {
                d_scale -= t < place.last ? other[i] * a[i] * s : 0.0f;
                d_a[i] -= scale * other[i];
              }
              d_a[i] *= s * (1 + a[i] * (1 - s));  // silu'
            }
            if (t < place.last) {
#pragma unroll
              for (int i = 0; i < kChannels; ++i) {
                d_w[i][kTaps - 1] += d_a[i] * now[i];
#pragma unroll
                for (int j = 0; j < kTaps - 1; ++j) {
                  d_w[i][kTaps - 2 - j] += d_a[i] * past.x[j][i];
                }
              }
            }
            past.push(now);
            emit(t, d_a);
          }
        }
      }
    }
    if (open && stop == call.tokens) {
      flush(stop);
    }
    d_scale *= scale;
  }
  // Over the block's runs, in their order.
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      shared[warp][(lane * kChannels + i) * kTaps + tap] = d_w[i][tap];
    }
  }
  __syncthreads();
  const int64_t row = static_cast<int64_t>(blockIdx.x) / call.columns;
  const int64_t from = static_cast<int64_t>(blockIdx.x) % call.columns * kLanes * kChannels;
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * kChannels * kLanes; i += kThreads) {
    if (from + i / kTaps < call.channels) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        sum += shared[other][i];
      }
      gradients.d_weight[(row * call.channels + from) * kTaps + i] = sum;
    }
  }
  if constexpr (kCorrect) {
    __syncthreads();
    shared[warp][lane] = d_scale;
    __syncthreads();
    if (warp == 0 && from + lane * kChannels < call.channels) {
      float sum = 0;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        sum += shared[other][lane];
      }
      gradients.d_log_scale[(row * call.channels + from) / kChannels + lane] = sum;
    }
  }
}

// One block a head: sums its channels' partial sums over all rows.
__global__ void __launch_bounds__(kThreads)
    sum_log_scale_kernel(const float* partials, int64_t rows, int64_t columns, int64_t of_head,
                         float* sums) {
  __shared__ float shared[kWarps];
  const int64_t head = blockIdx.x;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < rows * of_head; i += kThreads) {
    sum += partials[i / of_head * columns + head * of_head + i % of_head];
  }
  sum = sum_of_lanes<kLanes>(sum);
  if (threadIdx.x % kLanes == 0) {
    shared[threadIdx.x / kLanes] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) {
      sum += shared[warp];
    }
    sums[head] = sum;
  }
}

template <class F>
void with_taps(int64_t W, F&& f) {
  switch (W) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    default:
      return f(std::integral_constant<int, 4>{});
  }
}

template <class Arguments>
Call call_of(const Arguments& arguments, int channels) {
  const ShortConvProblem& p = arguments.problem;
  return {.tokens = p.B * p.T,
          .channels = p.C,
          .sequences = {.cu_seqlens = p.cu_seqlens, .count = p.N, .length = p.T},
          .columns = channel_blocks(p, channels),
          .x = arguments.x,
          .x_stride = arguments.x_stride,
          .weight = arguments.weight,
          .correction = arguments.correction};
}

}  // namespace

std::string short_conv_unsupported(const ShortConvProblem& p) {
  if (p.W < 1 || p.W > kMaxWidth) {
    return "the width must be 1 to 4";
  }
  return p.C % 8 == 0 ? "" : "the channels must be a multiple of 8";
}

size_t short_conv_backward_workspace(const ShortConvProblem& p) {
  return static_cast<size_t>(run_blocks(p) * (p.C * p.W + p.C / kBackwardChannels)) * sizeof(float);
}

void short_conv_forward(const ShortConvForward& forward, Stream stream) {
  const Call call = call_of(forward, kForwardChannels);
  const bool correct = call.correction.minus != nullptr;
  with_type(forward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_taps(forward.problem.W, [&](auto taps) {
      constexpr int kTaps = decltype(taps)::value;
      launch("launch of short_conv_forward",
             correct ? short_conv_forward_kernel<T, kTaps, true>
                     : short_conv_forward_kernel<T, kTaps, false>,
             run_blocks(forward.problem) * call.columns, kThreads, 0,
             static_cast<cudaStream_t>(stream), call, static_cast<T*>(forward.y));
    });
  });
}

void short_conv_backward(const ShortConvBackward& backward, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const ShortConvProblem& p = backward.problem;
  const Call call = call_of(backward, kBackwardChannels);
  const bool correct = call.correction.minus != nullptr;
  const int64_t rows = run_blocks(p);
  auto* d_weight = static_cast<float*>(backward.workspace);
  const Gradients gradients{.d_y = backward.d_y,
                            .d_x = backward.d_x,
                            .d_x_stride = backward.d_x_stride,
                            .d_weight = d_weight,
                            .d_log_scale = d_weight + rows * p.C * p.W};
  with_type(backward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_taps(p.W, [&](auto taps) {
      constexpr int kTaps = decltype(taps)::value;
      launch("launch of short_conv_backward",
             correct ? short_conv_backward_kernel<T, kTaps, true>
                     : short_conv_backward_kernel<T, kTaps, false>,
             rows * call.columns, kThreads, 0, stream, call, gradients);
    });
  });
  column_sums(gradients.d_weight, rows, p.C * p.W, backward.d_weight, stream);
  if (correct) {
    const int64_t of_head = call.correction.channels / kBackwardChannels;
    launch("launch of sum_log_scale", sum_log_scale_kernel, p.C / call.correction.channels,
           kThreads, 0, stream, gradients.d_log_scale, rows, p.C / kBackwardChannels, of_head,
           backward.d_log_scale);
  }
}

}  // namespace mdn::kernels::cuda
