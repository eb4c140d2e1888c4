// decay_gates: an entry a thread; in the backward pass neighbouring threads have neighbouring heads
// and each a few tokens, whose sums a block adds.
#include "mdn/kernels/decay_gates.h"

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/softplus.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensAThread = 8;  // of the backward pass
constexpr int kMaxHeadsABlock = 32;
constexpr int kParameters = 2;

/// Of a block of the backward pass: a power of two, and as few beyond HV as can be.
int heads_a_block(int64_t HV) {
  int heads = 1;
  while (heads < HV && heads < kMaxHeadsABlock) {
    heads *= 2;
  }
  return heads;
}

int64_t tokens_a_block(int64_t HV) {
  return kThreads / heads_a_block(HV) * kTokensAThread;
}

int64_t token_blocks(const DecayGatesProblem& p) {
  return (p.tokens + tokens_a_block(p.HV) - 1) / tokens_a_block(p.HV);
}

struct Parts {
  float a;     // with its bias
  float free;  // softplus(a)
  float dt;    // within its limits
  float rate;  // exp(A_log)
  float alpha;
};

template <class T>
__device__ Parts parts_of(const DecayGatesProblem& p, int64_t token, int64_t j) {
  Parts x;
  x.a = to_float(static_cast<const T*>(p.a)[token * p.a_stride + j]) + p.dt_bias[j];
  x.free = softplus(x.a);
  x.dt = fminf(fmaxf(x.free, static_cast<float>(p.low)), static_cast<float>(p.high));
  x.rate = expf(p.A_log[p.channels == 1 ? j : j / p.channels]);
  x.alpha = expf(-x.rate * x.dt);
  return x;
}

template <class T>
__device__ float sigmoid_b(const DecayGatesProblem& p, int64_t token, int64_t j) {
  return sigmoid<float>(to_float(static_cast<const T*>(p.b)[token * p.b_stride + j]));
}

template <class T>
__global__ void __launch_bounds__(kThreads) decay_gates_forward_kernel(DecayGatesForward call) {
  const DecayGatesProblem& p = call.problem;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t decays = p.HV * p.channels;
  let_next_start();
  wait_for_previous();
  if (i >= p.tokens * decays) {
    return;
  }
  const int64_t token = i / decays, j = i % decays;
  const Parts x = parts_of<T>(p, token, j);
  call.alpha[i] = x.alpha;
  if (call.dt != nullptr) {
    call.dt[i] = x.dt;
  }
  if (p.b != nullptr && j < p.HV) {
    call.beta[token * p.HV + j] = static_cast<float>(p.max_beta) * sigmoid_b<T>(p, token, j);
  }
}

// d_dt += -d_alpha alpha exp(A_log), and nothing of it passes a limit; d_a = d_dt sigmoid(a).
template <class T>
__global__ void __launch_bounds__(kThreads)
    decay_gates_backward_kernel(DecayGatesBackward call, int heads, float* partials) {
  __shared__ float shared[kParameters][kThreads];
  const DecayGatesProblem& p = call.problem;
  const int64_t groups = (p.HV + heads - 1) / heads;
  const int64_t block = blockIdx.x / groups;
  const int64_t j = blockIdx.x % groups * heads + threadIdx.x % heads;
  const int rows = kThreads / heads;
  const int64_t first = block * rows * kTokensAThread + threadIdx.x / heads;
  float d_A_log = 0, d_bias = 0;
#pragma unroll
  for (int n = 0; n < kTokensAThread; ++n) {
    const int64_t token = first + n * rows;
    if (j < p.HV && token < p.tokens) {
      const int64_t i = token * p.HV + j;
      const Parts x = parts_of<T>(p, token, j);
      const float d_log_alpha = call.d_alpha == nullptr ? 0.0f : call.d_alpha[i] * x.alpha;
      d_A_log -= d_log_alpha * x.rate * x.dt;
      const float d_dt = (call.d_dt == nullptr ? 0.0f : call.d_dt[i]) - d_log_alpha * x.rate;
      const bool within =
          x.free >= static_cast<float>(p.low) && x.free <= static_cast<float>(p.high);
      const float d_a = within ? d_dt * sigmoid<float>(x.a) : 0.0f;
      d_bias += d_a;
      static_cast<T*>(call.d_a)[token * call.d_a_stride + j] = from_float<T>(d_a);
      if (p.b != nullptr) {
        const float s = sigmoid_b<T>(p, token, j);
        const float d_beta = call.d_beta == nullptr ? 0.0f : call.d_beta[i];
        static_cast<T*>(call.d_b)[token * call.d_b_stride + j] =
            from_float<T>(d_beta * static_cast<float>(p.max_beta) * s * (1 - s));
      }
    }
  }
  shared[0][threadIdx.x] = d_A_log;
  shared[1][threadIdx.x] = d_bias;
  __syncthreads();
  if (threadIdx.x < heads && j < p.HV) {
    for (int k = 0; k < kParameters; ++k) {
      float sum = 0;
      for (int i = static_cast<int>(threadIdx.x); i < kThreads; i += heads) {
        sum += shared[k][i];
      }
      partials[(block * kParameters + k) * p.HV + j] = sum;
    }
  }
}

}  // namespace

size_t decay_gates_backward_workspace(const DecayGatesProblem& p) {
  return static_cast<size_t>(token_blocks(p) * kParameters * p.HV) * sizeof(float);
}

void decay_gates_forward(const DecayGatesForward& call, Stream stream) {
  with_type(call.problem.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    const DecayGatesProblem& p = call.problem;
    launch_early("launch of decay_gates_forward", decay_gates_forward_kernel<T>,
                 (p.tokens * p.HV * p.channels + kThreads - 1) / kThreads, kThreads, 0,
                 static_cast<cudaStream_t>(stream), call);
  });
}

void decay_gates_backward(const DecayGatesBackward& call, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const DecayGatesProblem& p = call.problem;
  auto* partials = static_cast<float*>(call.workspace);
  const int heads = heads_a_block(p.HV);
  with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    launch("launch of decay_gates_backward", decay_gates_backward_kernel<T>,
           token_blocks(p) * ((p.HV + heads - 1) / heads), kThreads, 0, stream, call, heads,
           partials);
  });
  column_sums(partials, token_blocks(p), kParameters * p.HV, call.d_parameters, stream);
}

}  // namespace mdn::kernels::cuda
