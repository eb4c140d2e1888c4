// Three launches: a warp a head rotates it and puts keys and values into the caches; blocks read
// the caches, a span of tokens of a head each; a block a head joins the spans. A group of lanes
// holds a row of a cache, and a few rows are on their way for it at a time.
#include "mdn/kernels/attention_step.h"

#include <algorithm>
#include <cfloat>
#include <numbers>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/rotary_angles.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 4;
constexpr int kThreads = kWarp * kWarps;
constexpr int kSpan = 128;    // tokens of a block
constexpr int kTogether = 4;  // rows of a cache on their way for a group of lanes
constexpr int64_t kMaxHeadDim = kRotaryMaxHeadDim;

int64_t spans_of(const AttentionStep& call) {
  return (call.capacity + kSpan - 1) / kSpan;
}

/// Of a span of tokens: the largest score, and weights with respect to it.
struct Sums {
  float largest = -FLT_MAX;  // in units of log 2
  float weight = 0;          // sum of exp2(score - largest)
};

/// What lies where in the workspace: q [B, heads, d], then of each span Sums and sums of weight
/// times v [B, heads, spans].
__device__ float* rotated_of(const AttentionStep& call) {
  return static_cast<float*>(call.workspace);
}
__device__ Sums* sums_of(const AttentionStep& call) {
  return reinterpret_cast<Sums*>(rotated_of(call) + call.B * call.heads * call.d);
}
__device__ float* values_of(const AttentionStep& call, int64_t spans) {
  return reinterpret_cast<float*>(sums_of(call) + call.B * call.heads * spans);
}

__device__ int64_t first_token(const AttentionStep& call, int64_t position) {
  return call.window > 0 && position + 1 > call.window ? position + 1 - call.window : 0;
}

/// scale of q, so that scores are in units of log 2
__device__ float score_scale(const AttentionStep& call) {
  return rsqrtf(static_cast<float>(call.d)) * static_cast<float>(std::numbers::log2e);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    store_kernel(const AttentionStep call, const __grid_constant__ RotaryFrequencies frequencies) {
  constexpr int kPairs = static_cast<int>(kMaxHeadDim) / 2 / kWarp;  // of a lane
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t heads = call.heads + 2 * call.kv_heads;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  let_next_start();
  wait_for_previous();
  if (row >= call.B * heads) {
    return;
  }
  const int64_t b = row / heads, position = call.positions[b];
  int64_t head = row % heads;
  const void* from = call.q;
  const float* bias = call.q_bias;
  const float* norm = call.q_norm;
  void* cache = nullptr;
  bool rotates = true;
  if (head >= call.heads) {
    head -= call.heads;
    rotates = head < call.kv_heads;
    head -= rotates ? 0 : call.kv_heads;
    from = rotates ? call.k : call.v;
    bias = rotates ? call.k_bias : call.v_bias;
    norm = rotates ? call.k_norm : nullptr;
    cache = rotates ? call.k_cache : call.v_cache;
  }
  const auto half = static_cast<int>(call.d / 2);
  const T* const x = static_cast<const T*>(from) + b * call.stride + head * call.d;
  float low[kPairs], high[kPairs], squares = 0;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int c = i * kWarp + lane;
    low[i] = high[i] = 0;
    if (c < half) {
      low[i] = to_float(x[c]) + (bias ? bias[head * call.d + c] : 0.0f);
      high[i] = to_float(x[c + half]) + (bias ? bias[head * call.d + c + half] : 0.0f);
    }
    squares += low[i] * low[i] + high[i] * high[i];
  }
  float inverse = 1;
  if (norm != nullptr) {
    inverse = rsqrtf(sum_of_lanes<kWarp>(squares) / static_cast<float>(call.d) +
                     static_cast<float>(call.eps));
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int c = i * kWarp + lane;
    if (c >= half) {
      continue;
    }
    float a = low[i], z = high[i];
    if (norm != nullptr) {
      a *= inverse * norm[c];
      z *= inverse * norm[c + half];
    }
    if (rotates) {
      float sine, cosine;
      rotary_angle(static_cast<double>(position), frequencies.of[c], sine, cosine);
      const float turned = a * cosine - z * sine;
      z = a * sine + z * cosine;
      a = turned;
    }
    if (cache != nullptr) {
      T* const to =
          static_cast<T*>(cache) + ((b * call.kv_heads + head) * call.capacity + position) * call.d;
      to[c] = from_float<T>(a);
      to[c + half] = from_float<T>(z);
    } else {
      float* const to = rotated_of(call) + (b * call.heads + head) * call.d;
      to[c] = a * score_scale(call);
      to[c + half] = z * score_scale(call);
    }
  }
}

/// kLanes lanes hold a row of a cache in kPieces pieces each.
template <class T, int kLanes, int kPieces>
__global__ void __launch_bounds__(kThreads) attend_kernel(const AttentionStep call, int spans) {
  constexpr int N = kVector<T>;
  constexpr int kGroups = kThreads / kLanes;
  using Columns = float[kPieces][N];
  __shared__ Sums warp_sums[kWarps];
  __shared__ float warp_values[kWarps][kMaxHeadDim];
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int span = static_cast<int>(blockIdx.x) % spans;
  const int64_t row = blockIdx.x / spans;  // b heads + head
  let_next_start();
  wait_for_previous();
  const int64_t b = row / call.heads, head = row % call.heads;
  const int64_t position = call.positions[b];
  const int64_t from = max(first_token(call, position), int64_t{span} * kSpan);
  const int64_t end = min(position + 1, int64_t{span + 1} * kSpan);
  if (from >= end) {
    return;
  }
  const int64_t kv_row = b * call.kv_heads + head / (call.heads / call.kv_heads);
  const T* const keys = static_cast<const T*>(call.k_cache) + kv_row * call.capacity * call.d;
  const T* const values = static_cast<const T*>(call.v_cache) + kv_row * call.capacity * call.d;
  const auto column = [&](int piece) { return (piece * kLanes + lane) * N; };
  Columns q, sums;
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      q[j][i] = column(j) < call.d ? rotated_of(call)[row * call.d + column(j) + i] : 0.0f;
      sums[j][i] = 0;
    }
  }
  Sums own;
  for (int64_t first = from + group; first < end + group; first += kGroups * kTogether) {
    Run<T, N> k[kTogether][kPieces], v[kTogether][kPieces];
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const int64_t token = first + t * kGroups;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        k[t][j].clear();
        v[t][j].clear();
        if (token < end && column(j) < call.d) {
          k[t][j].load(keys + token * call.d + column(j));
          v[t][j].load(values + token * call.d + column(j));
        }
      }
    }
    float score[kTogether], largest = own.largest;
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      score[t] = 0;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        float x[N];
        k[t][j].unpack(x);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          score[t] += q[j][i] * x[i];
        }
      }
      score[t] = sum_of_lanes<kLanes>(score[t]);
      score[t] = first + t * kGroups < end ? score[t] : -FLT_MAX;
      largest = fmaxf(largest, score[t]);
    }
    const float kept = exp2f(own.largest - largest);
    own.largest = largest;
    own.weight *= kept;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sums[j][i] *= kept;
      }
    }
#pragma unroll
    for (int t = 0; t < kTogether; ++t) {
      const float weight = first + t * kGroups < end ? exp2f(score[t] - largest) : 0.0f;
      own.weight += weight;
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
        float x[N];
        v[t][j].unpack(x);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sums[j][i] += weight * x[i];
        }
      }
    }
  }
  // Over the groups of a warp, then over warps.
#pragma unroll
  for (int offset = kLanes; offset < kWarp; offset *= 2) {
    const float other = __shfl_xor_sync(kAllLanes, own.largest, offset);
    const float largest = fmaxf(own.largest, other);
    const float kept = exp2f(own.largest - largest), taken = exp2f(other - largest);
    own.weight = own.weight * kept + __shfl_xor_sync(kAllLanes, own.weight, offset) * taken;
    own.largest = largest;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sums[j][i] = sums[j][i] * kept + __shfl_xor_sync(kAllLanes, sums[j][i], offset) * taken;
      }
    }
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (static_cast<int>(threadIdx.x) % kWarp < kLanes) {
    if (lane == 0) {
      warp_sums[warp] = own;
    }
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (column(j) < call.d) {
          warp_values[warp][column(j) + i] = sums[j][i];
        }
      }
    }
  }
  __syncthreads();
  float largest = -FLT_MAX;
  for (const Sums& of : warp_sums) {
    largest = fmaxf(largest, of.largest);
  }
  const int64_t place = row * spans + span;
  for (int c = static_cast<int>(threadIdx.x); c < call.d; c += kThreads) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      sum += warp_values[w][c] * exp2f(warp_sums[w].largest - largest);
    }
    values_of(call, spans)[place * call.d + c] = sum;
  }
  if (threadIdx.x == 0) {
    Sums all{largest, 0};
    for (const Sums& of : warp_sums) {
      all.weight += of.weight * exp2f(of.largest - largest);
    }
    sums_of(call)[place] = all;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) join_kernel(const AttentionStep call, int spans) {
  const int64_t row = blockIdx.x;
  let_next_start();
  wait_for_previous();
  const int64_t position = call.positions[row / call.heads];
  const auto first = static_cast<int>(first_token(call, position) / kSpan);
  const auto last = static_cast<int>(position / kSpan);
  const Sums* const sums = sums_of(call) + row * spans;
  const float* const values = values_of(call, spans) + row * spans * call.d;
  float largest = -FLT_MAX, weight = 0;
  for (int s = first; s <= last; ++s) {
    largest = fmaxf(largest, sums[s].largest);
  }
  for (int s = first; s <= last; ++s) {
    weight += sums[s].weight * exp2f(sums[s].largest - largest);
  }
  for (int c = static_cast<int>(threadIdx.x); c < call.d; c += kThreads) {
    float sum = 0;
    for (int s = first; s <= last; ++s) {
      sum += values[s * call.d + c] * exp2f(sums[s].largest - largest);
    }
    static_cast<T*>(call.o)[row * call.d + c] = from_float<T>(sum / weight);
  }
}

template <class T, int kLanes, int kPieces>
void attend(const AttentionStep& call, cudaStream_t stream) {
  const auto spans = static_cast<int>(spans_of(call));
  launch_early("launch of attention_step", attend_kernel<T, kLanes, kPieces>,
               call.B * call.heads * spans, kThreads, 0, stream, call, spans);
}

}  // namespace

std::string attention_step_unsupported(DType dtype, int64_t d) {
  if (dtype == DType::kFloat64) {
    return "float64 is not supported";
  }
  return d % 8 == 0 && d <= kMaxHeadDim ? "" : "heads must be a multiple of 8 long, up to 256";
}

size_t attention_step_workspace(const AttentionStep& call) {
  const auto rows = static_cast<size_t>(call.B * call.heads), d = static_cast<size_t>(call.d);
  const auto spans = static_cast<size_t>(spans_of(call));
  return rows * (d * sizeof(float) + spans * (d * sizeof(float) + sizeof(Sums)));
}

void attention_step(const AttentionStep& call, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const int64_t heads = call.B * (call.heads + 2 * call.kv_heads);
    launch_early("launch of attention_step's keys", store_kernel<T>, (heads + kWarps - 1) / kWarps,
                 kThreads, 0, stream, call, rotary_frequencies(call.theta, call.d));
    const int64_t pieces = call.d / kVector<T>;
    if (pieces <= 8) {
      attend<T, 8, 1>(call, stream);
    } else if (pieces <= 16) {
      attend<T, 16, 1>(call, stream);
    } else if (pieces <= 32) {
      attend<T, 32, 1>(call, stream);
    } else {
      attend<T, 32, 2>(call, stream);
    }
    launch_early("launch of attention_step's sums", join_kernel<T>, call.B * call.heads, kThreads,
                 0, stream, call, static_cast<int>(spans_of(call)));
  });
}

}  // namespace mdn::kernels::cuda
