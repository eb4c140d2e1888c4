// The short convolution's backward pass. Sums over tokens stay in registers: a lane walks with its
// channels along a run of tokens; the tokens ahead are on their way to shared memory, which takes
// no registers. Bound by memory.
#include <algorithm>

#include "mdn/kernels/cuda/column_sums.cuh"
#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/cuda/divide.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/short_conv_parts.cuh"

namespace mdn::kernels::cuda {
namespace short_conv {
namespace {

constexpr int kWarps = 8;  // one run of tokens each
constexpr int kThreads = kLanes * kWarps;
constexpr int kBlocks = 2;  // of a multiprocessor, as the registers allow
constexpr int kGroup = 4;   // tokens that are fetched, waited for and computed together
// tokens; the W - 1 before and behind a run are read once more
constexpr int64_t kShortestRun = 16;

/// Tokens of a warp of the backward pass: with as many blocks as the device holds at once all end
/// together, where one more would make all wait for the last.
int64_t run_of(const ShortConvProblem& p) {
  const int64_t blocks = int64_t{device_facts().multiprocessors} * kBlocks;
  const int64_t rows = std::max<int64_t>(1, blocks / channel_blocks(p));
  const int64_t run = ratio_up(p.B * p.T, rows * kWarps);
  return std::max(kShortestRun, ratio_up(run, kGroup) * kGroup);
}

/// Blocks along tokens, of the backward pass.
int64_t run_blocks(const ShortConvProblem& p) {
  return ratio_up(p.B * p.T, run_of(p) * kWarps);
}

struct Place {
  int column;           // the warp's first channel
  int channel;          // the lane's first
  bool inside;          // whether there is such a channel; else channel is 0
  int64_t first, last;  // tokens of the run
};

__device__ inline Place place_of(int64_t tokens, int64_t run, unsigned columns, int channels) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  Place place;
  place.column = static_cast<int>(blockIdx.x % columns) * kLanes * kChannels;
  place.channel = place.column + lane * kChannels;
  place.inside = place.channel < channels;
  place.channel = place.inside ? place.channel : 0;
  place.first = (static_cast<int64_t>(blockIdx.x / columns) * kWarps + warp) * run;
  place.last = min(place.first + run, tokens);
  return place;
}

/// The tokens ahead of a walk, on their way to shared memory: a ring of groups for each of kTensors
/// tensors. A warp fetches its rows together, 16 bytes a lane, and waits for nobody else.
template <class T, int kTensors>
struct Ahead {
  static constexpr int kUnit = 16 / static_cast<int>(sizeof(T));  // elements of a copy
  static constexpr int kRowBytes = kLanes * kChannels * static_cast<int>(sizeof(T));
  static constexpr int kRowLanes = kRowBytes / 16;
  static constexpr int kRows = kLanes / kRowLanes;  // that a copy of every lane brings
  static constexpr int kTensorBytes = kGroup * kRowBytes;
  static constexpr int kGroupBytes = kTensors * kTensorBytes;
  static constexpr int kRing = sizeof(T) == 4 ? 2 : 4;
  static constexpr int kWarpBytes = kRing * kGroupBytes;
  static constexpr size_t kBytes = size_t{kWarps} * kWarpBytes;
  static_assert(kGroup % kRows == 0);

  uint32_t to;                // the lane's copy of the first row
  const unsigned char* mine;  // the lane's channels of the first token
  const T* from[kTensors];
  int64_t stride[kTensors];
  int row;    // the lane's, of a copy
  int count;  // tokens that there are; 0 where the lane has no channels to copy
  int fetched = 0;

  /// `width`: channels from the warp's first on.
  __device__ Ahead(unsigned char* shared, int tokens, int width) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    unsigned char* const of_warp = shared + static_cast<int>(threadIdx.x) / kLanes * kWarpBytes;
    to = ptx::shared_address(of_warp) + lane * 16;
    mine = of_warp + lane * kChannels * static_cast<int>(sizeof(T));
    row = lane / kRowLanes;
    count = lane % kRowLanes * kUnit < width ? tokens : 0;
  }
  /// Tensor i starts at `first`, the first token's and the warp's first channel.
  __device__ void source(int i, const T* first, int64_t of_token) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    from[i] = first + row * of_token + lane % kRowLanes * kUnit;
    stride[i] = of_token;
  }
  /// Starts the fetching of the next group, empty past the end.
  __device__ void fetch() {
    const uint32_t group = to + fetched / kGroup % kRing * kGroupBytes;
#pragma unroll
    for (int g = 0; g < kGroup; g += kRows) {
      if (fetched + g + row < count) {
#pragma unroll
        for (int i = 0; i < kTensors; ++i) {
          ptx::async_copy_run<16>(group + i * kTensorBytes + g * kRowBytes,
                                  from[i] + g * stride[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTensors; ++i) {
      from[i] += kGroup * stride[i];
    }
    fetched += kGroup;
    ptx::async_copy_commit();
  }
  __device__ void begin() {
#pragma unroll
    for (int group = 0; group < kRing - 1; ++group) {
      fetch();
    }
  }
  /// Waits for the next group of the walk, and fetches another in place of the one before it. Every
  /// lane of the warp.
  __device__ void wait() {
    ptx::async_copy_wait_but<kRing - 2>();
    __syncwarp();
    fetch();
  }
  /// The lane's channels of token `group` + g, a group's first and one of it.
  __device__ void read(int group, int g, int tensor, float (&x)[kChannels]) const {
    Run<T, kChannels> item;
    item.load(reinterpret_cast<const T*>(mine + group / kGroup % kRing * kGroupBytes +
                                         tensor * kTensorBytes + g * kRowBytes));
    item.unpack(x);
  }
};

/// Of the block's sums of weight gradients.
constexpr size_t kSumBytes = sizeof(float) * kTaps * kChannels * kThreads;

struct Gradients {
  int64_t run;  // tokens of a warp
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
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_kernel(Call call, Gradients gradients) {
  constexpr bool kCorrect = kExtra == Extra::kCorrection, kBias = kExtra == Extra::kBias;
  constexpr int kBehind = kTaps - 1;
  extern __shared__ __align__(16) unsigned char memory[];
  const Place place = place_of(call.tokens, gradients.run, call.columns, call.channels);
  wait_for_previous();
  float d_w[kChannels][kTaps] = {}, d_b[kChannels] = {};
  float d_scale = 0;
  if (place.first < place.last) {
    const int64_t x_stride = call.x_stride, stride = call.channels;
    const int64_t d_x_stride = gradients.d_x_stride;
    const int64_t at = place.first * stride + place.column;
    const T* const x = static_cast<const T*>(call.x) + place.first * x_stride;
    const int run = static_cast<int>(place.last - place.first);
    // With the tokens behind the run that its last d_x need, as far as there are tokens.
    const int walked = run + static_cast<int>(min(call.tokens - place.last, int64_t{kBehind}));
    Ahead<T, kCorrect ? 3 : 2> ahead(memory, walked, call.channels - place.column);
    ahead.source(0, x + place.column, x_stride);
    ahead.source(1, static_cast<const T*>(gradients.d_y) + at, stride);
    float scale = 0;
    if constexpr (kCorrect) {
      ahead.source(2, static_cast<const T*>(call.correction.minus) + at, stride);
      scale = expf(call.correction.log_scale[place.channel / call.correction.channels]);
    }
    ahead.begin();
    float w[kChannels][kTaps], bias[kChannels] = {};
    load_weight(call.weight, place.channel, call.width, w);
    if constexpr (kBias) {
      load_run(call.bias + place.channel, bias);
    }
    SequenceWalk sequence(call.sequences, place.first);
    // Where the sequence ends, counted from the run's first token as everything below.
    const auto end_of = [&] {
      return static_cast<int>(min(sequence.end() - place.first, gradients.run + kTaps));
    };
    int end = end_of();
    Past past, past_d;
    past.load(x + place.channel, x_stride,
              static_cast<int>(min(place.first - sequence.start(), int64_t{kBehind})));
    past_d.clear();

    int due = 0;  // the first token of the run and the sequence, whose d_x are written from here
    T* d_x = static_cast<T*>(gradients.d_x) + (place.first - kBehind) * d_x_stride + place.channel;
    // Takes d_a of a token and writes d_x of the one kBehind before it, if that is the run's and
    // the sequence's.
    const auto emit = [&](int token, const float(&d_a)[kChannels]) {
      float sum[kChannels];
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        sum[i] = w[i][0] * d_a[i];
#pragma unroll
        for (int j = 0; j < kBehind; ++j) {
          sum[i] += w[i][j + 1] * past_d.x[j][i];
        }
      }
      if (place.inside && token - kBehind >= due) {
        store_run(d_x, sum);
      }
      d_x += d_x_stride;
      past_d.push(d_a);
    };
    // Writes what is due of the tokens before `token`, after which there is nothing.
    const auto close = [&](int token) {
      const float zero[kChannels] = {};
#pragma unroll 1
      for (int i = token; i < min(token, run) + kBehind; ++i) {
        emit(i, zero);
      }
      d_x -= (min(token, run) + kBehind - token) * d_x_stride;
    };
    const auto take = [&](int group, int g, bool of_run, float(&d_a)[kChannels]) {
      float now[kChannels], a[kChannels];
      [[maybe_unused]] float other[kChannels];
      ahead.read(group, g, 0, now);
      ahead.read(group, g, 1, d_a);
      if constexpr (kCorrect) {
        ahead.read(group, g, 2, other);
      }
      past.convolve(now, w, bias, a);
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const float s = sigmoid<T>(a[i]), silu = a[i] * s;
        if constexpr (kCorrect) {
          d_scale -= of_run ? other[i] * silu : 0.0f;
          d_a[i] -= scale * other[i];
        }
        d_a[i] *= s + silu * (1 - s);  // silu'
      }
      if (of_run) {
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
    };
    int token = 0;
    for (int group = 0; group < walked; group += kGroup) {
      ahead.wait();
      if (group + kGroup <= min(end, run)) {
#pragma unroll
        for (int g = 0; g < kGroup; ++g) {
          float d_a[kChannels];
          take(group, g, true, d_a);
          emit(group + g, d_a);
        }
        token = group + kGroup;
        continue;
      }
#pragma unroll 1
      for (int g = 0; g < kGroup && token < walked; ++g) {
        if (token == end) {
          if (token >= run) {
            break;
          }
          close(token);
          sequence.next();
          end = end_of();
          past.clear();
          past_d.clear();
          due = token;
        }
        float d_a[kChannels];
        take(group, g, token < run, d_a);
        emit(token, d_a);
        ++token;
      }
    }
    close(token);
    d_scale *= scale;
  }
  let_next_start();
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

/// The first `weight_blocks` blocks sum the weights' partial sums, [rows, weights]; then there is
/// one for each head, which sums its `of_head` of `columns` columns of partial sums over all rows.
__global__ void __launch_bounds__(kSumThreads)
    sums_kernel(Gradients partials, int64_t rows, int64_t weights, int64_t weight_blocks,
                int64_t columns, int64_t of_head, float* d_weight, float* d_log_scale) {
  wait_for_previous();
  if (blockIdx.x < weight_blocks) {
    return sum_columns(partials.d_weight, rows, weights, blockIdx.x, d_weight);
  }
  constexpr int kSumWarps = kSumThreads / kLanes;
  __shared__ float shared[kSumWarps];
  const int64_t head = blockIdx.x - weight_blocks;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < rows * of_head; i += kSumThreads) {
    const Division at = divide(i, of_head);
    sum += partials.d_log_scale[at.quotient * columns + head * of_head + at.remainder];
  }
  sum = sum_of_lanes<kLanes>(sum);
  if (threadIdx.x % kLanes == 0) {
    shared[threadIdx.x / kLanes] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kSumWarps; ++warp) {
      sum += shared[warp];
    }
    d_log_scale[head] = sum;
  }
}

}  // namespace
}  // namespace short_conv

size_t short_conv_backward_workspace(const ShortConvProblem& p) {
  return static_cast<size_t>(short_conv::run_blocks(p) *
                             (p.C * (p.W + 1) + p.C / short_conv::kChannels)) *
         sizeof(float);
}

void short_conv_backward(const ShortConvBackward& backward, Stream stream_) {
  using namespace short_conv;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const ShortConvProblem& p = backward.problem;
  const int64_t rows = run_blocks(p);
  auto* d_weight = static_cast<float*>(backward.workspace);
  const Gradients gradients{.run = run_of(p),
                            .d_y = backward.d_y,
                            .d_x = backward.d_x,
                            .d_x_stride = backward.d_x_stride,
                            .d_weight = d_weight,
                            .d_bias = d_weight + rows * p.C * p.W,
                            .d_log_scale = d_weight + rows * p.C * (p.W + 1)};
  with_type(backward.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    with_extra(backward, [&](auto extra) {
      constexpr Extra kExtra = decltype(extra)::value;
      launch_early("launch of short_conv_backward", backward_kernel<T, kExtra>,
                   rows * channel_blocks(p), kThreads,
                   std::max(Ahead<T, (kExtra == Extra::kCorrection ? 3 : 2)>::kBytes, kSumBytes),
                   stream, call_of(backward), gradients);
    });
  });
  const ShortConvCorrection& correction = backward.correction;
  const int64_t blocks = ratio_up(p.C * p.W, kSumColumns);
  const int64_t heads = correction.minus != nullptr ? p.C / correction.channels : 0;
  launch_early("launch of short_conv_sums", sums_kernel, blocks + heads, kSumThreads, 0, stream,
               gradients, rows, p.C * p.W, blocks, p.C / kChannels,
               heads == 0 ? 0 : p.C / kChannels / heads, backward.d_weight, backward.d_log_scale);
  if (backward.bias != nullptr) {
    column_sums(gradients.d_bias, rows, p.C, backward.d_bias, stream);
  }
}

}  // namespace mdn::kernels::cuda
