// The convolution over a run of tokens: a lane holds the same few channels of a run of kRun tokens
// and walks along it with the last W - 1 inputs in registers, so each input is read once (and W - 1
// more at the start of a run). The tokens ahead are on their way to shared memory, which takes no
// registers. Bound by memory.
#include "mdn/kernels/short_conv.h"

#include <algorithm>
#include <type_traits>

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/sequences.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;  // side by side along channels
constexpr int kWarps = 8;   // one run of tokens each
constexpr int kThreads = kLanes * kWarps;
constexpr int kRun = 64;  // tokens
constexpr int kChannels = 4;
constexpr int kTaps = 4;   // of every kernel: a narrower convolution's oldest weights are 0
constexpr int kGroup = 4;  // tokens that are fetched and waited for together

/// What a call has besides x and weight.
enum class Extra { kNothing, kCorrection, kBias };

int64_t run_blocks(const ShortConvProblem& p) {
  return (p.B * p.T + kRun * kWarps - 1) / (kRun * kWarps);
}

int64_t channel_blocks(const ShortConvProblem& p) {
  return (p.C + kLanes * kChannels - 1) / (kLanes * kChannels);
}

struct Place {
  int64_t channel;      // the lane's first
  int64_t first, last;  // tokens of the run
};

__device__ inline Place place_of(int64_t tokens, unsigned columns) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  Place place;
  place.channel = (static_cast<int64_t>(blockIdx.x % columns) * kLanes + lane) * kChannels;
  place.first = (static_cast<int64_t>(blockIdx.x / columns) * kWarps + warp) * kRun;
  place.last = min(place.first + kRun, tokens);
  return place;
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
  int64_t tokens, channels;
  SequenceTable sequences;
  unsigned columns;  // blocks along channels
  const void* x;
  int64_t x_stride;
  int width;
  const float* weight;
  const float* bias;
  ShortConvCorrection correction;
};

/// The tokens ahead of a walk, on their way to shared memory: a ring of groups for each of kTensors
/// tensors. Every thread fetches and reads its own channels alone, so there is nothing to
/// synchronise.
template <class T, int kTensors>
struct Ahead {
  using Item = Run<T, kChannels>;
  static constexpr int kGroups = sizeof(T) == 4 ? 2 : 4;
  static constexpr int kTensorBytes = kGroup * kThreads * static_cast<int>(sizeof(Item));
  static constexpr int kGroupBytes = kTensors * kTensorBytes;
  static constexpr size_t kBytes = size_t{kGroups} * kGroupBytes;

  unsigned char* mine;  // the thread's first item
  const T* from[kTensors];
  int64_t stride[kTensors];
  int count;  // tokens that there are
  int fetched = 0;

  __device__ Ahead(unsigned char* shared, int tokens)
      : mine(shared + threadIdx.x * sizeof(Item)), count(tokens) {}

  /// Starts the fetching of the next group, empty past the end.
  __device__ void fetch() {
    unsigned char* const group = mine + fetched / kGroup % kGroups * kGroupBytes;
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      if (fetched + g < count) {
#pragma unroll
        for (int i = 0; i < kTensors; ++i) {
          ptx::async_copy_run<sizeof(Item)>(
              ptx::shared_address(group + i * kTensorBytes + g * kThreads * sizeof(Item)), from[i]);
          from[i] += stride[i];
        }
      }
    }
    fetched += kGroup;
    ptx::async_copy_commit();
  }
  __device__ void begin() {
#pragma unroll
    for (int group = 0; group < kGroups - 1; ++group) {
      fetch();
    }
  }
  /// Fetches one group more and waits for that of `token`, the first of one.
  __device__ void wait() {
    fetch();
    ptx::async_copy_wait_but<kGroups - 1>();
  }
  __device__ void read(int token, int tensor, float (&x)[kChannels]) const {
    Item item;
    item.load(reinterpret_cast<const T*>(mine + token / kGroup % kGroups * kGroupBytes +
                                         tensor * kTensorBytes +
                                         token % kGroup * kThreads * sizeof(Item)));
    item.unpack(x);
  }
};

/// Blocks that a multiprocessor holds, as the registers allow.
template <class T, Extra kExtra>
inline constexpr int kForwardBlocks = sizeof(T) == 2 ? (kExtra == Extra::kNothing ? 4 : 3) : 2;

template <class T, Extra kExtra>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T, kExtra>)
    short_conv_forward_kernel(Call call, T* y) {
  constexpr bool kCorrect = kExtra == Extra::kCorrection;
  const Place place = place_of(call.tokens, call.columns);
  if (place.channel >= call.channels || place.first >= place.last) {
    return;
  }
  const int64_t x_stride = call.x_stride, stride = call.channels;
  const int64_t at = place.first * stride + place.channel;
  const T* const x = static_cast<const T*>(call.x) + place.first * x_stride + place.channel;
  const int run = static_cast<int>(place.last - place.first);
  extern __shared__ __align__(16) unsigned char shared[];
  Ahead<T, kCorrect ? 2 : 1> ahead(shared, run);
  ahead.from[0] = x;
  ahead.stride[0] = x_stride;
  float scale = 0;
  if constexpr (kCorrect) {
    ahead.from[1] = static_cast<const T*>(call.correction.minus) + at;
    ahead.stride[1] = stride;
    scale = expf(call.correction.log_scale[place.channel / call.correction.channels]);
  }
  ahead.begin();
  y += at;
  float w[kChannels][kTaps], bias[kChannels] = {};
  load_weight(call.weight, place.channel, call.width, w);
  if constexpr (kExtra == Extra::kBias) {
    load_run(call.bias + place.channel, bias);
  }
  SequenceWalk sequence(call.sequences, place.first);
  // Where the sequence ends, counted from the run's first token as everything below.
  const auto end_of = [&] {
    return static_cast<int>(min(sequence.end(), place.last) - place.first);
  };
  Past past;
  past.load(x, x_stride, static_cast<int>(min(place.first - sequence.start(), int64_t{kTaps - 1})));
  int end = end_of();
  for (int group = 0; group < run; group += kGroup) {
    ahead.wait();
#pragma unroll
    for (int g = 0; g < kGroup; ++g) {
      const int token = group + g;
      if (token == end) {
        if (token == run) {
          break;
        }
        sequence.next();
        end = end_of();
        past.clear();
      }
      float now[kChannels], a[kChannels];
      [[maybe_unused]] float other[kChannels];
      ahead.read(token, 0, now);
      past.convolve(now, w, bias, a);
      past.push(now);
      if constexpr (kCorrect) {
        ahead.read(token, 1, other);
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        a[i] *= sigmoid<T>(a[i]);
        if constexpr (kCorrect) {
          a[i] -= scale * other[i];
        }
      }
      store_run(y, a);
      y += stride;
    }
  }
}

/// Of the block's sums of weight gradients.
constexpr size_t kSumBytes = sizeof(float) * kTaps * kChannels * kThreads;

struct Gradients {
  const void* d_y;
  void* d_x;
  int64_t d_x_stride;
  float* d_weight;     // [run blocks, C, W] partial sums
  float* d_bias;       // [run blocks, C] partial sums
  float* d_log_scale;  // [run blocks, C / kChannels] partial sums
};

// d_x[s] = sum_d weight[W-1-d] d_a[s+d] over the tokens s+d of the sequence: known once d_a[s+W-1]
// is, so d_x is written W - 1 tokens behind, and the walk goes that far past the run.
template <class T, Extra kExtra>
__global__ void __launch_bounds__(kThreads, 2)
    short_conv_backward_kernel(Call call, Gradients gradients) {
  constexpr bool kCorrect = kExtra == Extra::kCorrection, kBias = kExtra == Extra::kBias;
  constexpr int kBehind = kTaps - 1;
  extern __shared__ __align__(16) unsigned char memory[];
  const Place place = place_of(call.tokens, call.columns);
  float d_w[kChannels][kTaps] = {}, d_b[kChannels] = {};
  float d_scale = 0;
  if (place.channel < call.channels && place.first < place.last) {
    const int64_t x_stride = call.x_stride, stride = call.channels;
    const int64_t d_x_stride = gradients.d_x_stride;
    const int64_t at = place.first * stride + place.channel;
    const T* const x = static_cast<const T*>(call.x) + place.first * x_stride + place.channel;
    const int run = static_cast<int>(place.last - place.first);
    // The tokens behind the run that its last d_x need, as far as there are tokens.
    const int walked = run + static_cast<int>(min(call.tokens - place.last, int64_t{kBehind}));
    Ahead<T, kCorrect ? 3 : 2> ahead(memory, walked);
    ahead.from[0] = x;
    ahead.stride[0] = x_stride;
    ahead.from[1] = static_cast<const T*>(gradients.d_y) + at;
    ahead.stride[1] = stride;
    float scale = 0;
    if constexpr (kCorrect) {
      ahead.from[2] = static_cast<const T*>(call.correction.minus) + at;
      ahead.stride[2] = stride;
      scale = expf(call.correction.log_scale[place.channel / call.correction.channels]);
    }
    ahead.begin();
    T* d_x = static_cast<T*>(gradients.d_x) + place.first * d_x_stride + place.channel;
    float w[kChannels][kTaps], bias[kChannels] = {};
    load_weight(call.weight, place.channel, call.width, w);
    if constexpr (kBias) {
      load_run(call.bias + place.channel, bias);
    }
    SequenceWalk sequence(call.sequences, place.first);
    // Where the sequence ends, counted from the run's first token as everything below.
    const auto end_of = [&] {
      return static_cast<int>(min(sequence.end() - place.first, int64_t{kRun + kTaps}));
    };
    Past past, past_d;
    past.load(x, x_stride, static_cast<int>(min(place.first - sequence.start(), int64_t{kBehind})));

    int taken = 0;  // tokens of the sequence whose d_a is in past_d or was
    // Takes d_a of the next token and writes d_x of the one kBehind before it, if that is the
    // run's.
    const auto emit = [&](const float(&d_a)[kChannels]) {
      if (taken >= kBehind) {
        float sum[kChannels];
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          sum[i] = w[i][0] * d_a[i];
#pragma unroll
          for (int j = 0; j < kBehind; ++j) {
            sum[i] += w[i][j + 1] * past_d.x[j][i];
          }
        }
        store_run(d_x, sum);
        d_x += d_x_stride;
      }
      past_d.push(d_a);
      ++taken;
    };
    const auto emit_zeros = [&](int count) {
      const float zero[kChannels] = {};
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        emit(zero);
      }
    };
    int end = end_of();
    bool open = true;  // d_x of the last tokens is still due
    for (int group = 0; group < walked && open; group += kGroup) {
      ahead.wait();
#pragma unroll
      for (int g = 0; g < kGroup; ++g) {
        const int token = group + g;
        if (token == walked) {
          break;
        }
        if (token == end) {
          emit_zeros(kBehind);
          if (token >= run) {
            open = false;
            break;
          }
          sequence.next();
          end = end_of();
          past.clear();
          past_d.clear();
          taken = 0;
        }
        float now[kChannels], a[kChannels], d_a[kChannels];
        [[maybe_unused]] float other[kChannels];
        ahead.read(token, 0, now);
        ahead.read(token, 1, d_a);
        if constexpr (kCorrect) {
          ahead.read(token, 2, other);
        }
        past.convolve(now, w, bias, a);
        const bool inside = token < run;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          const float s = sigmoid<T>(a[i]), silu = a[i] * s;
          if constexpr (kCorrect) {
            d_scale -= inside ? other[i] * silu : 0.0f;
            d_a[i] -= scale * other[i];
          }
          d_a[i] *= s + silu * (1 - s);  // silu'
        }
        if (inside) {
#pragma unroll
          for (int i = 0; i < kChannels; ++i) {
            d_b[i] += d_a[i];
            d_w[i][kTaps - 1] += d_a[i] * now[i];
#pragma unroll
            for (int j = 0; j < kBehind; ++j) {
              d_w[i][kTaps - 2 - j] += d_a[i] * past.x[j][i];
            }
          }
        }
        past.push(now);
        emit(d_a);
      }
    }
    if (open) {
      emit_zeros(kBehind - (walked - run));
    }
    d_scale *= scale;
  }
  // What was fetched has been read: the same memory takes the sums.
  ptx::async_copy_wait();
  __syncthreads();
  auto* const shared = reinterpret_cast<float(*)[kTaps * kChannels * kLanes]>(memory);
  // Over the block's runs, in their order.
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  const auto over_runs = [&](int i) {
    float sum = 0;
#pragma unroll
    for (int other = 0; other < kWarps; ++other) {
      sum += shared[other][i];
    }
    return sum;
  };
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      shared[warp][(lane * kChannels + i) * kTaps + tap] = d_w[i][tap];
    }
  }
  __syncthreads();
  const int64_t row = blockIdx.x / call.columns;
  const int64_t from = static_cast<int64_t>(blockIdx.x % call.columns) * kLanes * kChannels;
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * kChannels * kLanes; i += kThreads) {
    const int tap = i % kTaps - (kTaps - call.width);
    if (tap >= 0 && from + i / kTaps < call.channels) {
      gradients.d_weight[(row * call.channels + from + i / kTaps) * call.width + tap] =
          over_runs(i);
    }
  }
  if constexpr (kBias) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      shared[warp][lane * kChannels + i] = d_b[i];
    }
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    if (i < kChannels * kLanes && from + i < call.channels) {
      gradients.d_bias[row * call.channels + from + i] = over_runs(i);
    }
  }
  if constexpr (kCorrect) {
    __syncthreads();
    shared[warp][lane] = d_scale;
    __syncthreads();
    if (warp == 0 && from + lane * kChannels < call.channels) {
      gradients.d_log_scale[(row * call.channels + from) / kChannels + lane] = over_runs(lane);
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

/// f(std::integral_constant<Extra, ...>).
template <class F>
void with_extra(const Call& call, F&& f) {
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
          .channels = p.C,
          .sequences = {.cu_seqlens = p.cu_seqlens, .count = p.N, .length = p.T},
          .columns = static_cast<unsigned>(channel_blocks(p)),
          .x = arguments.x,
          .x_stride = arguments.x_stride,
          .width = static_cast<int>(p.W),
          .weight = arguments.weight,
          .bias = arguments.bias,
          .correction = arguments.correction};
}

}  // namespace

std::string short_conv_unsupported(const ShortConvProblem& p) {
  if (p.W < 1 || p.W > kTaps) {
    return "the width must be 1 to 4";
  }
  return p.C % 8 == 0 ? "" : "the channels must be a multiple of 8";
}

size_t short_conv_backward_workspace(const ShortConvProblem& p) {
  return static_cast<size_t>(run_blocks(p) * (p.C * (p.W + 1) + p.C / kChannels)) * sizeof(float);
}

void short_conv_forward(const ShortConvForward& forward, Stream stream) {
  const Call call = call_of(forward);
  with_type(forward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_extra(call, [&](auto extra) {
      constexpr Extra kExtra = decltype(extra)::value;
      launch("launch of short_conv_forward", short_conv_forward_kernel<T, kExtra>,
             run_blocks(forward.problem) * call.columns, kThreads,
             Ahead<T, (kExtra == Extra::kCorrection ? 2 : 1)>::kBytes,
             static_cast<cudaStream_t>(stream), call, static_cast<T*>(forward.y));
    });
  });
}

void short_conv_backward(const ShortConvBackward& backward, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const ShortConvProblem& p = backward.problem;
  const Call call = call_of(backward);
  const int64_t rows = run_blocks(p);
  auto* d_weight = static_cast<float*>(backward.workspace);
  const Gradients gradients{.d_y = backward.d_y,
                            .d_x = backward.d_x,
                            .d_x_stride = backward.d_x_stride,
                            .d_weight = d_weight,
                            .d_bias = d_weight + rows * p.C * p.W,
                            .d_log_scale = d_weight + rows * p.C * (p.W + 1)};
  with_type(backward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_extra(call, [&](auto extra) {
      constexpr Extra kExtra = decltype(extra)::value;
      launch("launch of short_conv_backward", short_conv_backward_kernel<T, kExtra>,
             rows * call.columns, kThreads,
             std::max(Ahead<T, (kExtra == Extra::kCorrection ? 3 : 2)>::kBytes, kSumBytes), stream,
             call, gradients);
    });
  });
  column_sums(gradients.d_weight, rows, p.C * p.W, backward.d_weight, stream);
  if (call.correction.minus != nullptr) {
    const int64_t of_head = call.correction.channels / kChannels;
    launch("launch of sum_log_scale", sum_log_scale_kernel, p.C / call.correction.channels,
           kThreads, 0, stream, gradients.d_log_scale, rows, p.C / kChannels, of_head,
           backward.d_log_scale);
  } else if (call.bias != nullptr) {
    column_sums(gradients.d_bias, rows, p.C, backward.d_bias, stream);
  }
}

}  // namespace mdn::kernels::cuda
