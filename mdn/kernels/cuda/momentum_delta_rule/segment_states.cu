#include "mdn/kernels/cuda/momentum_delta_rule/segment_states.h"

#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kChannels = kSegmentStateChannels;
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kRows = 4;  // of A x a thread

struct Params {
  // [N, HV, V, K]: initial states, or gradients of the final ones; null: zeros
  const float* given_S;
  const float* given_M;
  float* S;  // [N segments, HV, V, K]
  float* M;
  const float* maps;
  const float2* norms;        // unused backwards
  const uint32_t* no_starts;  // backwards: `unknown` of the forward pass
  uint32_t* unknown;          // raised
  int segments;
  int HV;
  int V;
};

/// Sums of kChannels numbers over a warp: that of channel lane / 4, in all four lanes of a quad.
__device__ __forceinline__ float sums_of_warp(float (&x)[kChannels], int lane) {
#pragma unroll
  for (int count = kChannels / 2; count > 0; count /= 2) {
    const int step = 4 * count;  // lanes with this bit keep the upper half
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, upper ? x[i] : x[i + count], step);
      x[i] = (upper ? x[i + count] : x[i]) + other;
    }
  }
  x[0] += __shfl_xor_sync(kAllLanes, x[0], 2);
  return x[0] + __shfl_xor_sync(kAllLanes, x[0], 1);
}

/// What a block works on: a sequence, a head and kChannels channels of V, from segment to segment.
template <int kX, int kK>
struct Work {
  const Params& params;
  int first_channel;
  int head;
  int sequence;
  int first_state;  // of the sequence's first segment

  __device__ __forceinline__ explicit Work(const Params& given) : params(given) {
    const int parts = params.V / kChannels;
    int block = static_cast<int>(blockIdx.x);
    first_channel = block % parts * kChannels;
    block /= parts;
    head = block % params.HV;
    sequence = block / params.HV;
    first_state = sequence * params.segments;
  }

  /// Element i of X of a value channel, in the n-th of states [.., HV, V, K].
  template <class Float>
  __device__ __forceinline__ Float* element(Float* S, Float* M, int n, int channel, int i) const {
    const int64_t row = (int64_t{n} * params.HV + head) * params.V + first_channel + channel;
    return i < kK ? S + row * kK + i : M + row * kK + (i - kK);
  }
  __device__ __forceinline__ float* state(int segment, int channel, int i) const {
    return element(params.S, params.M, first_state + segment, channel, i);
  }
  __device__ __forceinline__ float given(int channel, int i) const {
    const bool there = (i < kK ? params.given_S : params.given_M) != nullptr;
    return there ? *element(params.given_S, params.given_M, sequence, channel, i) : 0.0f;
  }
  __device__ __forceinline__ int64_t map(int segment) const {
    return (int64_t{first_state + segment} * params.HV + head) * kX;
  }
  __device__ __forceinline__ void raise_unknown(int count) const {
    atomicMax(params.unknown + int64_t{sequence} * params.HV + head, static_cast<uint32_t>(count));
  }
};

/// kX channels of the states, the first kK those of S.
template <int kX, int kK>
struct StartShared {
  static constexpr int kGroups = kThreads * kRows / kX;  // that share the sum over i
  alignas(16) float x[kX][kChannels];                    // of the segment's start
  float norms[kX / kK][kX];                              // |A e_i|^2, the parts of S and of M
  alignas(16) float partial[kGroups][kChannels][kX];     // of A x
};

template <int kX, int kK>
__global__ void __launch_bounds__(kThreads, 1)
    segment_states(const __grid_constant__ Params params) {
  using Block = StartShared<kX, kK>;
  extern __shared__ __align__(16) char raw[];
  auto& shared = *reinterpret_cast<Block*>(raw);
  const Work<kX, kK> work(params);
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kElements = kX * kChannels;
  for (int at = thread; at < kElements; at += kThreads) {
    const int channel = at / kX;
    const int i = at % kX;
    *work.state(0, channel, i) = work.given(channel, i);
    // The first segment was walked from there, so the second one's start is complete.
    shared.x[i][channel] = *work.state(1, channel, i);
  }
  __syncthreads();

  // The check: a warp for S or M of a channel, the others have none.
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int half = warp / kChannels;
  const int checked = warp % kChannels;
  const bool checks = half < kX / kK;
  const auto norm_of_start = [&] {  // |S|^2 or |S|^2 + |M|^2
    float sum = 0;
    for (int i = lane; i < (half + 1) * kK; i += 32) {
      sum = fmaf(shared.x[i][checked], shared.x[i][checked], sum);
    }
    return sum_of_lanes<32>(sum);
  };
  float largest = checks ? norm_of_start() : 0.0f;

  const int row = thread % (kX / kRows) * kRows;
  const int group = thread / (kX / kRows);
  for (int segment = 1; segment < params.segments - 1; ++segment) {
    const float* A = params.maps + work.map(segment) * kX;
    if (thread < kX) {
      const float2 norm = params.norms[work.map(segment) + thread];
      shared.norms[0][thread] = norm.x;
      if constexpr (kX > kK) {
        shared.norms[1][thread] = norm.y;
      }
    }
    // (A x)[row] = sum over i of A[i][row] x[i]
    float sum[kChannels][kRows] = {};
    constexpr int kShare = kX / Block::kGroups;
#pragma unroll 8
    for (int i = group * kShare; i < (group + 1) * kShare; ++i) {
      const float4 a = *reinterpret_cast<const float4*>(A + i * kX + row);
      float x[kChannels];
      *reinterpret_cast<float4*>(&x[0]) = *reinterpret_cast<const float4*>(&shared.x[i][0]);
      *reinterpret_cast<float4*>(&x[4]) = *reinterpret_cast<const float4*>(&shared.x[i][4]);
#pragma unroll
      for (int channel = 0; channel < kChannels; ++channel) {
        sum[channel][0] = fmaf(a.x, x[channel], sum[channel][0]);
        sum[channel][1] = fmaf(a.y, x[channel], sum[channel][1]);
        sum[channel][2] = fmaf(a.z, x[channel], sum[channel][2]);
        sum[channel][3] = fmaf(a.w, x[channel], sum[channel][3]);
      }
    }
#pragma unroll
    for (int channel = 0; channel < kChannels; ++channel) {
      *reinterpret_cast<float4*>(&shared.partial[group][channel][row]) = {
          sum[channel][0], sum[channel][1], sum[channel][2], sum[channel][3]};
    }
    __syncthreads();
    float loss = 0;  // sum over i of |A e_i|^2 x_i^2
    if (checks) {
      for (int i = lane; i < kX; i += 32) {
        const float x = shared.x[i][checked];
        loss = fmaf(shared.norms[half][i], x * x, loss);
      }
      loss = sum_of_lanes<32>(loss);
    }
    __syncthreads();
    for (int at = thread; at < kElements; at += kThreads) {
      const int channel = at / kX;
      const int i = at % kX;
      float* start = work.state(segment + 1, channel, i);
      float x = *start;  // b
#pragma unroll
      for (int g = 0; g < Block::kGroups; ++g) {
        x += shared.partial[g][channel][i];
      }
      *start = x;
      shared.x[i][channel] = x;
    }
    __syncthreads();
    if (checks) {
      const float norm = norm_of_start();
      largest = fmaxf(largest, norm);
      const bool known = loss + norm < INFINITY && loss <= kLargestLoss * kLargestLoss * largest;
      if (!known && lane == 0) {
        work.raise_unknown(params.segments - 1 - segment);
      }
    }
  }
}

template <int kX, int kK>
struct EndShared {
  float y[kChannels][kX];         // gradients of what the segment ends with
  float z[kChannels][kX];         // A^T y
  float loss[kWarps][kChannels];  // of the rows that a warp sums up
};

template <int kX, int kK>
__global__ void __launch_bounds__(kThreads, 1) segment_ends(const __grid_constant__ Params params) {
  using Block = EndShared<kX, kK>;
  __shared__ Block shared;
  const Work<kX, kK> work(params);
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int last = params.segments - 1;
  constexpr int kElements = kX * kChannels;
  for (int at = thread; at < kElements; at += kThreads) {
    const int channel = at / kX;
    const int i = at % kX;
    *work.state(last, channel, i) = work.given(channel, i);
    // The last segment was walked from there, so the end of the one before is complete.
    shared.y[channel][i] = *work.state(last - 1, channel, i);
  }
  if (thread == 0 && params.no_starts[int64_t{work.sequence} * params.HV + work.head] > 0) {
    work.raise_unknown(last);
  }
  __syncthreads();

  // The check: a warp for S or M of a channel.
  constexpr int kHalves = kX / kK;
  const int half = warp / kChannels;
  const int checked = warp % kChannels;
  const bool checks = half < kHalves;
  const auto norm_of_end = [&] {  // |dS|^2 or |dS|^2 + |dM|^2
    float sum = 0;
    for (int i = lane; i < (half + 1) * kK; i += 32) {
      sum = fmaf(shared.y[checked][i], shared.y[checked][i], sum);
    }
    return sum_of_lanes<32>(sum);
  };
  float largest = checks ? norm_of_end() : 0.0f;

  constexpr int kCount = kX / 32;      // rows of y a lane
  constexpr int kShare = kX / kWarps;  // of z a warp, all of S or all of M
  constexpr int kVector = kCount < 4 ? kCount : 4;
  using Vector = std::conditional_t<kVector == 4, float4, float2>;
  const auto row = [&](int r) {
    return 32 * kVector * (r / kVector) + kVector * lane + r % kVector;
  };
  static_assert(kK % kShare == 0);
  for (int segment = last - 1; segment > 0; --segment) {
    const float* A = params.maps + work.map(segment) * kX;
    float y[kCount][kChannels];
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
#pragma unroll
      for (int channel = 0; channel < kChannels; ++channel) {
        y[r][channel] = shared.y[channel][row(r)];
      }
    }
    // (A^T y)[i] = sum over rows of A[i][row] y[row]
    float squares[kCount] = {};  // of this warp's rows of A
#pragma unroll 2
    for (int i = warp * kShare; i < (warp + 1) * kShare; ++i) {
      float a[kCount];
#pragma unroll
      for (int r = 0; r < kCount; r += kVector) {
        *reinterpret_cast<Vector*>(&a[r]) = *reinterpret_cast<const Vector*>(A + i * kX + row(r));
      }
      float sum[kChannels] = {};
#pragma unroll
      for (int r = 0; r < kCount; ++r) {
        squares[r] = fmaf(a[r], a[r], squares[r]);
#pragma unroll
        for (int channel = 0; channel < kChannels; ++channel) {
          sum[channel] = fmaf(a[r], y[r][channel], sum[channel]);
        }
      }
      const float z = sums_of_warp(sum, lane);
      if (lane % 4 == 0) {
        shared.z[lane / 4][i] = z;
      }
    }
    float losses[kChannels] = {};  // sum over rows of squares y^2, of this warp's part of |A^T e|^2
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
#pragma unroll
      for (int channel = 0; channel < kChannels; ++channel) {
        losses[channel] = fmaf(squares[r], y[r][channel] * y[r][channel], losses[channel]);
      }
    }
    const float share = sums_of_warp(losses, lane);
    if (lane % 4 == 0) {
      shared.loss[warp][lane / 4] = share;
    }
    __syncthreads();
    for (int at = thread; at < kElements; at += kThreads) {
      const int channel = at / kX;
      const int i = at % kX;
      float* end = work.state(segment - 1, channel, i);
      const float x = *end + shared.z[channel][i];
      *end = x;
      shared.y[channel][i] = x;
    }
    __syncthreads();
    if (checks) {
      constexpr int kWarpsOfHalf = kWarps / kHalves;
      float loss = 0;
      for (int w = half * kWarpsOfHalf; w < (half + 1) * kWarpsOfHalf; ++w) {
        loss += shared.loss[w][checked];
      }
      const float norm = norm_of_end();
      largest = fmaxf(largest, norm);
      const bool known = loss + norm < INFINITY && loss <= kLargestLoss * kLargestLoss * largest;
      if (!known && lane == 0) {
        work.raise_unknown(segment);
      }
    }
    __syncthreads();  // the losses have been read
  }
}

template <class Run>
void choose_channels(const MomentumDeltaRuleProblem& problem, const Run& run) {
  if (problem.K == 128) {
    problem.momentum ? run.template operator()<256, 128>() : run.template operator()<128, 128>();
  } else {
    problem.momentum ? run.template operator()<128, 64>() : run.template operator()<64, 64>();
  }
}

int64_t blocks(const MomentumDeltaRuleProblem& problem) {
  return problem.N * problem.HV * (problem.V / kChannels);
}

}  // namespace

void launch_segment_states(const MomentumDeltaRuleProblem& problem,
                           const MomentumDeltaRuleInputs& inputs, int segments,
                           const SegmentMemory& memory, cudaStream_t stream) {
  const Params params{static_cast<const float*>(inputs.initial_S),
                      static_cast<const float*>(inputs.initial_M),
                      memory.start_S,
                      memory.start_M,
                      memory.maps,
                      reinterpret_cast<const float2*>(memory.norms),
                      nullptr,
                      memory.unknown,
                      segments,
                      static_cast<int>(problem.HV),
                      static_cast<int>(problem.V)};
  choose_channels(problem, [&]<int kX, int kK>() {
    launch("launch of segment_states", segment_states<kX, kK>, blocks(problem), kThreads,
           sizeof(StartShared<kX, kK>), stream, params);
  });
}

void launch_segment_ends(const MomentumDeltaRuleBackward& call, int segments,
                         const SegmentMemory& memory, const SegmentEnds& ends,
                         cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const Params params{static_cast<const float*>(call.d_final_S),
                      static_cast<const float*>(call.d_final_M),
                      ends.end_S,
                      ends.end_M,
                      memory.maps,
                      nullptr,
                      memory.unknown,
                      ends.unknown,
                      segments,
                      static_cast<int>(problem.HV),
                      static_cast<int>(problem.V)};
  choose_channels(problem, [&]<int kX, int kK>() {
    launch("launch of segment_ends", segment_ends<kX, kK>, blocks(problem), kThreads, 0, stream,
           params);
  });
}

}  // namespace mdn::kernels::cuda
