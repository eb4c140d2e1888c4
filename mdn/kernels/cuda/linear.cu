// A product of few rows is the reading of its weights. A warp makes one or two outputs of all rows:
// it reads their weights in order, 128 bytes a lane on their way at a time, the first of them
// before it waits for the kernel that makes x. x, normed where that is asked for, lies in shared
// memory.
#include "mdn/kernels/linear.h"

#include <type_traits>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kLanes * kWarps;
constexpr int kVectorsAhead = 8;          // of 16 bytes, on their way for a lane
constexpr size_t kMostShared = 46 << 10;  // bytes of x: with the sums below 48 KiB
constexpr int64_t kFewOutputs = 2048;     // up to which a warp makes one, so that all SMs work

/// The norm's weights of a thread's first columns.
template <class T>
__device__ void load_scale(const Linear& call, float (&scale)[kVector<T>]) {
  const int column = static_cast<int>(threadIdx.x) * kVector<T>;
  if (call.norm != nullptr && column < call.in) {
    load_run(call.norm + column, scale);
  }
}

/// u into shared memory: x, normed or as it is; rows past B are zeros.
template <class T, int kRows>
__device__ void stage(const Linear& call, float (&scale)[kVector<T>], T* u) {
  constexpr int N = kVector<T>, kTogether = kRows < 8 ? kRows : 8;  // loads on their way
  __shared__ float squares[kRows][kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const int in = static_cast<int>(call.in), B = static_cast<int>(call.B);
  float sums[kRows] = {};
  for (int column = thread * N; column < in; column += kThreads * N) {
#pragma unroll
    for (int from = 0; from < kRows; from += kTogether) {
      Run<T, N> runs[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        runs[i].clear();
        if (from + i < B) {
          runs[i].load(static_cast<const T*>(call.x) + int64_t{from + i} * in + column);
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        float x[N];
        runs[i].store(u + (from + i) * in + column);
        runs[i].unpack(x);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          sums[from + i] += x[e] * x[e];
        }
      }
    }
  }
  if (call.norm != nullptr) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      sums[row] = sum_of_lanes<kLanes>(sums[row]);
      if (thread % kLanes == 0) {
        squares[row][thread / kLanes] = sums[row];
      }
    }
    __syncthreads();
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      float sum = 0;
#pragma unroll
      for (int warp = 0; warp < kWarps; ++warp) {
        sum += squares[row][warp];
      }
      sums[row] = rsqrtf(sum / static_cast<float>(in) + static_cast<float>(call.eps));
    }
    // A thread scales what it stored itself.
    for (int column = thread * N; column < in; column += kThreads * N) {
      if (column != thread * N) {
        load_run(call.norm + column, scale);
      }
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        float x[N];
        load_run(u + row * in + column, x);
#pragma unroll
        for (int e = 0; e < N; ++e) {
          x[e] *= sums[row] * scale[e];
        }
        store_run(u + row * in + column, x);
      }
    }
  }
  __syncthreads();
}

/// kOutputs: of a warp; with swiglu two, a gate and its value.
template <class T, int kRows, int kOutputs>
__global__ void __launch_bounds__(kThreads) linear_kernel(const Linear call) {
  constexpr int N = kVector<T>, kAhead = kVectorsAhead / kOutputs;
  extern __shared__ __align__(16) unsigned char shared[];
  T* const u = reinterpret_cast<T*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  const int in = static_cast<int>(call.in);
  const int64_t first = call.swiglu ? index : index * kOutputs;
  const int64_t step = call.swiglu ? call.out : 1;  // from output to output
  const int64_t outputs = call.swiglu ? 2 * call.out : call.out;
  const bool active = first < call.out;
  let_next_start();

  Run<T, N> weights[kOutputs][kAhead];
  const auto fetch = [&](int from) {
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      const int64_t row = first + o * step;
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int column = from + (i * kLanes + lane) * N;
        weights[o][i].clear();
        if (active && row < outputs && column < in) {
          weights[o][i].load(static_cast<const T*>(call.weight) + row * in + column);
        }
      }
    }
  };
  fetch(0);
  float scale[N];
  load_scale<T>(call, scale);
  wait_for_previous();
  stage<T, kRows>(call, scale, u);
  if (!active) {
    return;
  }
  float sums[kRows][kOutputs] = {};
  for (int from = 0; from < in; from += kAhead * kLanes * N) {
    if (from > 0) {
      fetch(from);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int column = from + (i * kLanes + lane) * N;
      if (column < in) {
        float w[kOutputs][N];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          weights[o][i].unpack(w[o]);
        }
#pragma unroll
        for (int row = 0; row < kRows; ++row) {
          float x[N];
          load_run(u + row * in + column, x);
#pragma unroll
          for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
            for (int e = 0; e < N; ++e) {
              sums[row][o] += x[e] * w[o][e];
            }
          }
        }
      }
    }
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      sums[row][o] = sum_of_lanes<kLanes>(sums[row][o]);
    }
    if (lane != row || row >= call.B) {
      continue;
    }
    T* const y = static_cast<T*>(call.y) + row * call.out;
    const T* const add = static_cast<const T*>(call.add) + row * call.out;
    if (call.swiglu) {
      if constexpr (kOutputs == 2) {
        y[first] = from_float<T>(sums[row][0] * sigmoid<T>(sums[row][0]) * sums[row][1]);
      }
    } else {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        if (first + o < call.out) {
          const float held = call.add != nullptr ? to_float(add[first + o]) : 0.0f;
          y[first + o] = from_float<T>(sums[row][o] + held);
        }
      }
    }
  }
}

int64_t rows_of(int64_t B) {
  int64_t rows = 1;
  while (rows < B) {
    rows *= 2;
  }
  return rows;
}

size_t shared_bytes(const Linear& call) {
  return static_cast<size_t>(rows_of(call.B) * call.in) * size_of(call.dtype);
}

template <class T, int kRows>
void queue(const Linear& call, cudaStream_t stream) {
  const auto start = [&](auto kernel, int64_t warps) {
    launch_early("launch of linear", kernel, (warps + kWarps - 1) / kWarps, kThreads,
                 shared_bytes(call), stream, call);
  };
  if (call.swiglu) {
    start(linear_kernel<T, kRows, 2>, call.out);
  } else if (call.out <= kFewOutputs) {
    start(linear_kernel<T, kRows, 1>, call.out);
  } else {
    start(linear_kernel<T, kRows, 2>, (call.out + 1) / 2);
  }
}

}  // namespace

std::string linear_unsupported(const Linear& call) {
  if (call.B < 1 || call.B > kMostLinearRows) {
    return "the rows must be 1 to 8";
  }
  if (call.in % 8 != 0 || shared_bytes(call) > kMostShared) {
    return "the rows must be a multiple of 8 long and fit into 46 KiB, filled up to a power of two";
  }
  return "";
}

void linear(const Linear& call, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  with_type(call.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    switch (rows_of(call.B)) {
      case 1:
        return queue<T, 1>(call, stream);
      case 2:
        return queue<T, 2>(call, stream);
      case 4:
        return queue<T, 4>(call, stream);
      default:
        return queue<T, 8>(call, stream);
    }
  });
}

}  // namespace mdn::kernels::cuda
