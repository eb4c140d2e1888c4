// A single token: each row of a state is read once and written once, by one warp.
//
//     s = (diag(α) S)^T k,  y = (diag(α) S)^T q;   r = v - s;   o = scale (y + β (k·q) r)
//     S <- diag(α) S + β k r^T
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda::kimi {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kLaneNumbers = 16;  // of states in a lane's registers

struct StepParams {
  KimiDeltaRuleStep call;
  int64_t tiles;  // blocks a head
};

/// kLaneChannels: key channels of a lane, 32 apart.
template <int kLaneChannels>
__global__ void __launch_bounds__(kThreads) step_kernel(const StepParams p) {
  constexpr int kRowsPerWarp = kLaneNumbers / kLaneChannels;
  constexpr int kBlockRows = kWarps * kRowsPerWarp;
  const KimiDeltaRuleStep& call = p.call;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t tile = blockIdx.x % p.tiles;
  const int64_t gate = blockIdx.x / p.tiles;  // b HV + head
  const int64_t b = gate / call.HV, head = gate % call.HV;
  const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
  if (slot < 0) {
    return;  // a padding row
  }
  const int K = static_cast<int>(call.K);
  const int64_t row = (b * call.H + head / (call.HV / call.H)) * K;
  const float* const alpha_row = static_cast<const float*>(call.alpha) + gate * K;

  // Channels lane, lane + 32, ...
  float q[kLaneChannels], k[kLaneChannels], alpha[kLaneChannels];
  float qq = 0, kk = 0, kq = 0;
#pragma unroll
  for (int i = 0; i < kLaneChannels; ++i) {
    const int channel = lane + 32 * i;
    q[i] = k[i] = alpha[i] = 0;
    if (channel < K) {
      q[i] = load_element(call.q, row + channel, call.dtype);
      k[i] = load_element(call.k, row + channel, call.dtype);
      alpha[i] = alpha_row[channel];
    }
    qq += q[i] * q[i];
    kk += k[i] * k[i];
    kq += k[i] * q[i];
  }
  float q_factor = static_cast<float>(call.scale), k_factor = 1;
  if (call.l2norm) {
    q_factor /= sqrtf(sum_of_lanes<32>(qq) + static_cast<float>(kL2NormEps));
    k_factor /= sqrtf(sum_of_lanes<32>(kk) + static_cast<float>(kL2NormEps));
  }
  kq = q_factor * k_factor * sum_of_lanes<32>(kq);
  const float beta = static_cast<const float*>(call.beta)[gate];

  // All rows of the warp are on their way before the first is waited for.
  const int64_t first = tile * kBlockRows + warp * kRowsPerWarp;
  float* const S = static_cast<float*>(call.S) + ((slot * call.HV + head) * call.V + first) * K;
  float decayed[kRowsPerWarp][kLaneChannels], v[kRowsPerWarp];
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const bool inside = first + i < call.V;
    v[i] = inside ? load_element(call.v, gate * call.V + first + i, call.dtype) : 0.0f;
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) {
      const int channel = lane + 32 * j;
      decayed[i][j] = inside && channel < K ? S[int64_t{i} * K + channel] : 0.0f;
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsPerWarp; ++i) {
    float s = 0, y = 0;
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) {
      decayed[i][j] *= alpha[j];
      s += decayed[i][j] * k[j];
      y += decayed[i][j] * q[j];
    }
    s = sum_of_lanes<32>(s);
    y = sum_of_lanes<32>(y);
    if (first + i >= call.V) {
      return;
    }
    const float r = v[i] - k_factor * s;
    const float write = beta * k_factor * r;
#pragma unroll
    for (int j = 0; j < kLaneChannels; ++j) {
      const int channel = lane + 32 * j;
      if (channel < K) {
        S[int64_t{i} * K + channel] = decayed[i][j] + write * k[j];
      }
    }
    if (lane == 0) {
      store_element(call.o, gate * call.V + first + i, call.dtype, q_factor * y + beta * kq * r);
    }
  }
}

template <int kLaneChannels>
void launch_step(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  constexpr int kBlockRows = kWarps * kLaneNumbers / kLaneChannels;
  const StepParams p{call, (call.V + kBlockRows - 1) / kBlockRows};
  launch("launch of kimi_delta_rule step", step_kernel<kLaneChannels>, call.B * call.HV * p.tiles,
         kThreads, 0, stream, p);
}

}  // namespace

void step(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  if (call.K <= 128) {
    launch_step<4>(call, stream);
  } else {
    static_assert(kMaxStepChannels == 512);
    launch_step<16>(call, stream);
  }
}

}  // namespace mdn::kernels::cuda::kimi
