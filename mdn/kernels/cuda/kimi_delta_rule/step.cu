// A single token: each row of a state is read once and written once, by one warp.
//
//     s = (diag(α) S)^T k,  y = (diag(α) S)^T q;   r = v - s;   o = scale (y + β (k·q) r)
//     S <- diag(α) S + β k r^T
//
// A step is a copy with arithmetic. As in momentum_delta_rule's, a block is one warp, and the loads
// of all its rows are issued before anything waits.
#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/vectors.cuh"

namespace mdn::kernels::cuda::kimi {
namespace {

constexpr int kWarp = 32;
constexpr int kLoads = 8;    // of 16 bytes, on their way for a lane
constexpr int kFewRows = 2;  // of a warp where there are few
constexpr int kWidth = 4;    // neighbouring channels of a lane

struct StepParams {
  KimiDeltaRuleStep call;
  unsigned tiles;  // blocks a head
  bool vector;     // rows of states and of alpha start on 16 bytes and K fills whole pieces
  bool whole;      // so do those of q and k
};

/// Channels `channel` to `channel` + 3 of a row, zeros past K.
__device__ inline float4 load_piece(const float* row, int channel, int K, bool vector) {
  if (vector) {
    return channel < K ? __ldcs(reinterpret_cast<const float4*>(row + channel)) : float4{};
  }
  const auto at = [&](int i) { return channel + i < K ? row[channel + i] : 0.0f; };
  return make_float4(at(0), at(1), at(2), at(3));
}

__device__ inline void store_piece(float* row, int channel, int K, bool vector,
                                   const float (&x)[kWidth]) {
  if (vector) {
    if (channel < K) {
      __stcs(reinterpret_cast<float4*>(row + channel), make_float4(x[0], x[1], x[2], x[3]));
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    if (channel + i < K) {
      row[channel + i] = x[i];
    }
  }
}

/// kPieces: of a lane and row. kRows: of a warp.
template <int kPieces, int kRows>
__global__ void __launch_bounds__(kWarp) step_kernel(const StepParams p) {
  const KimiDeltaRuleStep& call = p.call;
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned gate = blockIdx.x / p.tiles;  // b HV + head
  const auto HV = static_cast<unsigned>(call.HV);
  const unsigned b = gate / HV, head = gate - b * HV;
  const int first = static_cast<int>((blockIdx.x - gate * p.tiles) * kRows);
  const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
  if (slot < 0) {
    return;  // a padding row
  }
  const int K = static_cast<int>(call.K), V = static_cast<int>(call.V);
  const auto channel = [&](int piece) { return (piece * kWarp + lane) * kWidth; };

  float* const S = static_cast<float*>(call.S) + ((slot * HV + head) * V + first) * K;
  float4 pieces[kRows][kPieces];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      pieces[i][j] = float4{};
      if (first + i < V) {
        pieces[i][j] = load_piece(S + int64_t{i} * K, channel(j), K, p.vector);
      }
    }
  }
  const int64_t out = int64_t{gate} * V + first;
  float v[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    v[i] = first + i < V ? load_element(call.v, out + i, call.dtype) : 0.0f;
  }
  const unsigned group = HV / static_cast<unsigned>(call.H);
  const int64_t row = int64_t{group == 1 ? gate : gate / group} * K;
  const float* const alpha_row = static_cast<const float*>(call.alpha) + int64_t{gate} * K;
  const float beta = static_cast<const float*>(call.beta)[gate];
  float q[kPieces][kWidth], k[kPieces][kWidth], alpha[kPieces][kWidth];
  float qq = 0, kk = 0, kq = 0;
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    const int inside = min(K - channel(j), kWidth);
    load_columns(call.q, row + channel(j), call.dtype, p.whole, inside, q[j]);
    load_columns(call.k, row + channel(j), call.dtype, p.whole, inside, k[j]);
    load_columns(alpha_row, channel(j), DType::kFloat32, p.vector, inside, alpha[j]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      qq += q[j][i] * q[j][i];
      kk += k[j][i] * k[j][i];
      kq += k[j][i] * q[j][i];
    }
  }
  float q_factor = static_cast<float>(call.scale), k_factor = 1;
  if (call.l2norm) {
    q_factor /= sqrtf(sum_of_lanes<kWarp>(qq) + static_cast<float>(kL2NormEps));
    k_factor /= sqrtf(sum_of_lanes<kWarp>(kk) + static_cast<float>(kL2NormEps));
  }
  kq = q_factor * k_factor * sum_of_lanes<kWarp>(kq);

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float decayed[kPieces][kWidth];
    float s = 0, y = 0;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      const float4& x = pieces[i][j];
      decayed[j][0] = x.x * alpha[j][0];
      decayed[j][1] = x.y * alpha[j][1];
      decayed[j][2] = x.z * alpha[j][2];
      decayed[j][3] = x.w * alpha[j][3];
#pragma unroll
      for (int c = 0; c < kWidth; ++c) {
        s += decayed[j][c] * k[j][c];
        y += decayed[j][c] * q[j][c];
      }
    }
    s = sum_of_lanes<kWarp>(s);
    y = sum_of_lanes<kWarp>(y);
    const float r = v[i] - k_factor * s;
    const float write = beta * k_factor * r;
    if (first + i < V) {
#pragma unroll
      for (int j = 0; j < kPieces; ++j) {
#pragma unroll
        for (int c = 0; c < kWidth; ++c) {
          decayed[j][c] += write * k[j][c];
        }
        store_piece(S + int64_t{i} * K, channel(j), K, p.vector, decayed[j]);
      }
      if (lane == 0) {
        store_element(call.o, out + i, call.dtype, q_factor * y + beta * kq * r);
      }
    }
  }
}

template <int kPieces, int kRows>
void launch_rows(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  const auto aligned = [](const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
  const int64_t tiles = (call.V + kRows - 1) / kRows;
  const StepParams p{.call = call,
                     .tiles = static_cast<unsigned>(tiles),
                     .vector = call.K % kWidth == 0 && aligned(call.S) && aligned(call.alpha),
                     .whole = call.K % 8 == 0 && aligned(call.q) && aligned(call.k)};
  launch("launch of kimi_delta_rule step", step_kernel<kPieces, kRows>, call.B * call.HV * tiles,
         kWarp, 0, stream, p);
}

/// As many rows a warp as fill a lane's loads, where that leaves four warps a multiprocessor.
template <int kPieces>
void launch_step(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  constexpr int kRows = kLoads / kPieces;
  const int64_t warps = call.B * call.HV * ((call.V + kRows - 1) / kRows);
  if (kRows > kFewRows && warps < 4 * int64_t{device_facts().multiprocessors}) {
    launch_rows<kPieces, kFewRows>(call, stream);
  } else {
    launch_rows<kPieces, kRows>(call, stream);
  }
}

}  // namespace

void step(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  if (call.K <= kWarp * kWidth) {
    launch_step<1>(call, stream);
  } else {
    static_assert(kMaxStepChannels == 4 * kWarp * kWidth);
    launch_step<4>(call, stream);
  }
}

}  // namespace mdn::kernels::cuda::kimi
