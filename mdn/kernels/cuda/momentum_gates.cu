#include "mdn/kernels/momentum_gates.h"

#include "mdn/kernels/cuda/column_sums.h"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/softplus.cuh"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTokensAThread = 4;  // of the backward pass
constexpr int kParameters = 5;

/// How many value heads a block of the backward pass has side by side, so that neighbouring threads
/// read and write neighbours; the rest of its threads are tokens.
__host__ __device__ inline int heads_of_block(int64_t HV) {
  return static_cast<int>(HV < kThreads ? HV : kThreads);
}

int64_t token_blocks(const MomentumGatesProblem& p) {
  const int64_t together = int64_t{kThreads / heads_of_block(p.HV)} * kTokensAThread;
  return (p.tokens + together - 1) / together;
}

int64_t head_blocks(const MomentumGatesProblem& p) {
  return (p.HV + heads_of_block(p.HV) - 1) / heads_of_block(p.HV);
}

/// Everything that a token's gates are made of.
struct Parts {
  float A, U, f;     // exp of the per-head parameters
  float a, m;        // with their biases
  float log_mu, mu;  // log_mu before the floor
  float tanh_e, eta;
  float squared, cos2;  // z², cos²
  float sigmoid_b;
  float log_decay, alpha;  // -A softplus(a)
};

template <class T>
__device__ Parts parts_of(const MomentumGatesProblem& p, const MomentumGatesParameters& parameters,
                          const MomentumGatesProjections& x, int64_t token, int64_t j) {
  const int64_t h = j / (p.HV / p.H), at = token * x.stride + j;
  const auto value = [&](const void* tensor) {
    return to_float(static_cast<const T*>(tensor)[at]);
  };
  Parts parts;
  parts.A = expf(parameters.A_log[h]);
  parts.U = expf(parameters.Mu_log[h]);
  parts.f = expf(parameters.log_factor[h]);
  parts.a = value(x.a) + parameters.dt_bias[j];
  parts.m = value(x.m) + parameters.mu_bias[j];
  parts.log_mu = -parts.U * softplus(parts.m);
  parts.mu = expf(fmaxf(parts.log_mu, static_cast<float>(p.min_log_mu)));
  parts.tanh_e = tanhf(value(x.e) / static_cast<float>(p.tau));
  parts.eta = 1 + parts.tanh_e;
  const float z = parts.eta * parts.f;
  parts.squared = z * z;
  parts.cos2 = 1 / (1 + parts.squared);
  parts.sigmoid_b = sigmoid<float>(value(x.b));
  parts.log_decay = -parts.A * softplus(parts.a);
  parts.alpha = parts.cos2 * expf(parts.log_decay);
  return parts;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    momentum_gates_forward_kernel(MomentumGatesForward call) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t HV = call.problem.HV;
  let_next_start();
  wait_for_previous();
  if (i >= call.problem.tokens * HV) {
    return;
  }
  const Parts parts = parts_of<T>(call.problem, call.parameters, call.projections, i / HV, i % HV);
  call.alpha[i] = parts.alpha;
  call.mu[i] = parts.mu;
  call.eta[i] = parts.eta;
  call.beta[i] = parts.squared * parts.cos2 * parts.sigmoid_b;
}

// With G = exp(-A softplus(a)): d_log_decay = d_alpha alpha, d_cos² = d_alpha G,
// d_sin² = d_beta sigmoid(b), and d(z²) = cos⁴ (d_sin² - d_cos²).
template <class T>
__global__ void __launch_bounds__(kThreads)
    momentum_gates_backward_kernel(MomentumGatesBackward call, int64_t token_blocks,
                                   float* partials) {
  __shared__ float shared[kParameters][kThreads];
  const int64_t HV = call.problem.HV;
  const int heads = heads_of_block(HV), tokens = kThreads / heads;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t block = blockIdx.x % token_blocks, first = blockIdx.x / token_blocks * heads;
  const int64_t j = first + thread % heads;
  float sums[kParameters] = {};
#pragma unroll
  for (int n = 0; n < kTokensAThread; ++n) {
    const int64_t token = (block * kTokensAThread + n) * tokens + thread / heads;
    if (thread / heads < tokens && j < HV && token < call.problem.tokens) {
      const int64_t i = token * HV + j, at = token * call.d_stride + j;
      const Parts p = parts_of<T>(call.problem, call.parameters, call.projections, token, j);
      const float d_alpha = call.d_alpha[i], d_beta = call.d_beta[i];
      const auto put = [&](void* tensor, float value) {
        static_cast<T*>(tensor)[at] = from_float<T>(value);
      };
      const float d_log_decay = d_alpha * p.alpha;
      const float d_a = -d_log_decay * p.A * sigmoid<float>(p.a);
      put(call.d_a, d_a);
      const bool above = p.log_mu >= static_cast<float>(call.problem.min_log_mu);
      const float d_log_mu = above ? call.d_mu[i] * p.mu : 0.0f;
      const float d_m = -d_log_mu * p.U * sigmoid<float>(p.m);
      put(call.d_m, d_m);
      const float d_sin2 = d_beta * p.sigmoid_b, d_cos2 = d_alpha * expf(p.log_decay);
      put(call.d_b, d_sin2 * p.squared * p.cos2 * (1 - p.sigmoid_b));
      const float d_squared = p.cos2 * p.cos2 * (d_sin2 - d_cos2);
      const float d_eta = call.d_eta[i] + 2 * d_squared * p.eta * p.f * p.f;
      put(call.d_e, d_eta * (1 - p.tanh_e * p.tanh_e) / static_cast<float>(call.problem.tau));
      sums[0] += d_log_decay * p.log_decay;
      sums[1] += d_log_mu * p.log_mu;
      sums[2] += 2 * d_squared * p.squared;
      sums[3] += d_a;
      sums[4] += d_m;
    }
  }
  let_next_start();
#pragma unroll
  for (int k = 0; k < kParameters; ++k) {
    shared[k][thread] = sums[k];
  }
  __syncthreads();
  for (int i = thread; i < kParameters * heads; i += kThreads) {
    const int k = i / heads, head = i % heads;
    float sum = 0;
    for (int token = 0; token < tokens; ++token) {
      sum += shared[k][token * heads + head];
    }
    if (first + head < HV) {
      partials[(block * kParameters + k) * HV + first + head] = sum;
    }
  }
}

}  // namespace

size_t momentum_gates_backward_workspace(const MomentumGatesProblem& p) {
  return static_cast<size_t>(token_blocks(p) * kParameters * p.HV) * sizeof(float);
}

void momentum_gates_forward(const MomentumGatesForward& call, Stream stream) {
  with_type(call.problem.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    launch_early("launch of momentum_gates_forward", momentum_gates_forward_kernel<T>,
                 (call.problem.tokens * call.problem.HV + kThreads - 1) / kThreads, kThreads, 0,
                 static_cast<cudaStream_t>(stream), call);
  });
}

void momentum_gates_backward(const MomentumGatesBackward& call, Stream stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  const MomentumGatesProblem& p = call.problem;
  auto* partials = static_cast<float*>(call.workspace);
  with_type(p.dtype, [&](auto type) {
    using T = typename decltype(type)::Type;
    launch("launch of momentum_gates_backward", momentum_gates_backward_kernel<T>,
           token_blocks(p) * head_blocks(p), kThreads, 0, stream, call, token_blocks(p), partials);
  });
  column_sums(partials, token_blocks(p), kParameters * p.HV, call.d_parameters, stream);
}

}  // namespace mdn::kernels::cuda
