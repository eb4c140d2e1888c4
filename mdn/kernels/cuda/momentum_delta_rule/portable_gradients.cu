// The gradients of q, k and the gates, a block a chunk of 16 tokens and query/key head. Given are
// the states S0, M0 at the chunk's start, their gradients dS, dM at its end, R and dW = dV:
//
//     oS = dO S0ᵀ, oM = dO M0ᵀ, wS = dW S0ᵀ, wM = dW M0ᵀ, rS = R dSᵀ, rM = R dMᵀ          16 x K
//     oR = lt(dO Rᵀ), F = slt(dW Rᵀ);  Y = scale oR D, E = -F D                           16 x 16
//     dP = Y∘G, dG = Y∘P;  Z = E∘H, dH = E∘KKᵀ
//     dQ = scale (a oS - b oM) + dP K
//     dK = dPᵀ Q + (Z + Zᵀ) K - e wS + c wM + D (g rS - n rM)
//
// and the gates' gradients by the masks' reverse recurrence (docs/math/momentum_delta_rule.md). A
// thread owns a column of K: its sums over V stay in registers, and nothing else is summed across
// blocks, so there is no second stage and no atomic. Tokens past a short chunk's end count as
// alpha = mu = pi = 1, eta = beta = 0 and zero rows, which change nothing.
#include <algorithm>

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_rows.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_walk.h"

namespace mdn::kernels::cuda::portable {
namespace {

constexpr int C = kPortableChunk;
constexpr int kSlice = 64;           // value channels in shared memory at a time
constexpr int kSliceStride = C + 4;  // keeps rows on 16 bytes, spreads the banks
constexpr int kMinThreads = 128;     // four warps, one a gate gradient
constexpr int kMaxThreads = kPortableMaxChannels;
constexpr int kMaxWarps = kMaxThreads / 32;
constexpr int kPairsPerThread = C * C / kMinThreads;

struct GradientsParams {
  Tokens tokens;  // v is not read
  const void* d_o;
  void* d_q;
  void* d_k;
  float* d_alpha;
  float* d_mu;
  float* d_eta;
  float* d_beta;
  float* d_pi;  // null: pi is alpha, whose gradient takes pi's
  Workspace work;
  int64_t pass;
  int64_t count;  // chunks of a row in the window
};

/// Column 0 of a mask is the response to the initial M, column j + 1 that to token j's write; row 0
/// is the chunk's start, row t + 1 is after token t.
using Mask = float[C + 1][C + 1];

struct Shared {
  float x[kSlice][kSliceStride];  // dO, dW or R, transposed
  float R[kSlice][kSliceStride];
  float dP[C][C];
  float Z[C][C];
  Mask Mu;
  Mask G;
  Mask H;
  float P[C][C + 1];
  float KK[C][C + 1];
  float oR[C][C + 1];
  float F[C][C + 1];
  float dG[C][C + 1];
  float dH[C][C + 1];
  float dEta[C][C + 1];
  float a[C + 1];  // response to the initial S
  float alpha[C];
  float mu[C];
  float eta[C];
  float beta[C];
  float pi[C];
  float inverse_norm[2 * C];  // of q's and k's rows
  float partial[kMaxWarps][2 * C];
  float inner_partial[kMaxWarps][3];
  float oS_q[2 * C];  // q·oS of every token, then q·oM
  float wS_k[2 * C];  // k·wS, k·wM
  float rS_k[2 * C];  // k·rS, k·rM
  float norm[2 * C];  // q·dq, k·dk for the norms' gradients
  float inner[3];     // <dS, S0>, <dS, M0>, <dM, M0>
};

/// The chunk a block works on, in one value head.
struct Place {
  int64_t token;
  int length;
  int64_t head;
  int64_t slot;  // (row * window + chunk) * HV
};

/// sums[i] = sum of values[i] over all columns, for 32 values at once. Ends with a barrier.
__device__ void block_sums(float (&values)[2 * C], Shared& s, float* sums) {
  const int thread = static_cast<int>(threadIdx.x);
  s.partial[thread / 32][thread % 32] = transposed_sums(values);
  __syncthreads();
  if (thread < 2 * C) {
    float sum = 0.0f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
      sum += s.partial[warp][thread];
    }
    sums[thread] = sum;
  }
  __syncthreads();
}

/// Mu[t,j] = mu Mu[t-1,j]; H[t,j] = pi G[t-1,j]; G[t,j] = alpha G[t-1,j] + beta Mu[t,j]: one warp,
/// a lane a column.
__device__ void make_masks(Shared& s) {
  const int j = static_cast<int>(threadIdx.x);
  float mu = j == 0 ? 1.0f : 0.0f;
  float g = 0.0f;
  float a = 1.0f;
  if (j <= C) {
    s.Mu[0][j] = mu;
    s.G[0][j] = 0.0f;
    s.H[0][j] = 0.0f;
    s.a[0] = 1.0f;
    for (int t = 1; t <= C; ++t) {
      mu = j == t ? 1.0f : s.mu[t - 1] * mu;
      s.H[t][j] = s.pi[t - 1] * g;
      g = j > t ? 0.0f : s.alpha[t - 1] * g + s.beta[t - 1] * mu;
      a *= s.alpha[t - 1];
      s.Mu[t][j] = mu;
      s.G[t][j] = g;
      s.a[t] = a;
    }
  }
}

/// Loads value channels [v0, v0 + kSlice) of the chunk's rows, transposed, zeros outside.
template <typename Load>
__device__ void load_slice(float (&to)[kSlice][kSliceStride], int64_t v0, int64_t V, int length,
                           const Load& load) {
  for (int i = static_cast<int>(threadIdx.x); i < C * kSlice; i += static_cast<int>(blockDim.x)) {
    const int t = i / kSlice;
    const int v = i % kSlice;
    to[v][t] = t < length && v0 + v < V ? load(t, v0 + v) : 0.0f;
  }
}

/// The sums over V of one pair of 16 x K products, x S and x M, in registers: thread = column. In
/// the phases of dO and dW, also pairs = x Rᵀ (16 x 16); in that of R, also the inner products.
enum class Phase { kOutput, kWrite, kRead };

template <Phase kPhase>
__device__ void sum_over_v(const GradientsParams& p, const Place& at, Shared& s, float (&xS)[C],
                           float (&xM)[C]) {
  const Tokens& x = p.tokens;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const bool active = thread < x.K;
  const int64_t state = (at.slot + at.head) * x.V * x.K + thread;
  const float* S0 = p.work.chunk_S + state;
  const float* M0 = p.work.chunk_M + state;
  const float* dS = p.work.chunk_dS + state;
  const float* dM = p.work.chunk_dM + state;
  const float* R = p.work.R + (at.slot * C + at.head) * x.V;
  const float* dW = p.work.dW + (at.slot * C + at.head) * x.V;
  const int64_t stride = x.HV * x.V;  // from token to token

  float pairs[kPairsPerThread] = {};
  float inner[3] = {};
#pragma unroll
  for (int t = 0; t < C; ++t) {
    xS[t] = 0.0f;
    xM[t] = 0.0f;
  }
  for (int64_t v0 = 0; v0 < x.V; v0 += kSlice) {
    __syncthreads();
    if constexpr (kPhase == Phase::kOutput) {
      load_slice(s.x, v0, x.V, at.length, [&](int t, int64_t v) {
        return load_element(p.d_o, ((at.token + t) * x.HV + at.head) * x.V + v, x.dtype);
      });
    } else if constexpr (kPhase == Phase::kWrite) {
      load_slice(s.x, v0, x.V, at.length, [&](int t, int64_t v) { return dW[t * stride + v]; });
    }
    const auto load_R = [&](int t, int64_t v) { return R[t * stride + v]; };
    load_slice(kPhase == Phase::kRead ? s.x : s.R, v0, x.V, at.length, load_R);
    __syncthreads();

    if constexpr (kPhase != Phase::kRead) {
#pragma unroll
      for (int i = 0; i < kPairsPerThread; ++i) {
        const int pair = thread + i * threads;
        if (pair < C * C) {
          for (int v = 0; v < kSlice; ++v) {  // x Rᵀ [t,j]
            pairs[i] += s.x[v][pair / C] * s.R[v][pair % C];
          }
        }
      }
    }
    if (active) {
      const int count = static_cast<int>(min(int64_t{kSlice}, x.V - v0));
#pragma unroll 4
      for (int v = 0; v < count; ++v) {  // xS[t] = sum over v of x[t,v] S[v,k]
        const int64_t row = (v0 + v) * x.K;
        const float S_v = kPhase == Phase::kRead ? dS[row] : S0[row];
        const float M_v = kPhase == Phase::kRead ? dM[row] : M0[row];
        if constexpr (kPhase == Phase::kRead) {
          inner[0] += S_v * S0[row];
          inner[1] += S_v * M0[row];
          inner[2] += M_v * M0[row];
        }
#pragma unroll
        for (int t = 0; t < C; t += 4) {
          const float4 four = *reinterpret_cast<const float4*>(&s.x[v][t]);
          xS[t + 0] += four.x * S_v;
          xM[t + 0] += four.x * M_v;
          xS[t + 1] += four.y * S_v;
          xM[t + 1] += four.y * M_v;
          xS[t + 2] += four.z * S_v;
          xM[t + 2] += four.z * M_v;
          xS[t + 3] += four.w * S_v;
          xM[t + 3] += four.w * M_v;
        }
      }
    }
  }

  if constexpr (kPhase != Phase::kRead) {
    auto& to = kPhase == Phase::kOutput ? s.oR : s.F;
#pragma unroll
    for (int i = 0; i < kPairsPerThread; ++i) {
      const int pair = thread + i * threads;
      if (pair < C * C) {
        to[pair / C][pair % C] = pairs[i];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const float sum = sum_of_lanes<32>(inner[i]);
      if (thread % 32 == 0) {
        s.inner_partial[thread / 32][i] = sum;
      }
    }
    __syncthreads();
    if (thread < 3) {
      float sum = 0.0f;
      for (int warp = 0; warp < threads / 32; ++warp) {
        sum += s.inner_partial[warp][thread];
      }
      s.inner[thread] = sum;
    }
  }
}

/// sums[t] = x_t·xS_t, sums[16 + t] = x_t·xM_t.
__device__ void row_dots(const float* x, int stride, bool active, const float (&xS)[C],
                         const float (&xM)[C], Shared& s, float* sums) {
  float values[2 * C];
#pragma unroll
  for (int t = 0; t < C; ++t) {
    const float x_t = active ? x[t * stride + static_cast<int>(threadIdx.x)] : 0.0f;
    values[t] = x_t * xS[t];
    values[C + t] = x_t * xM[t];
  }
  block_sums(values, s, sums);
}

/// The 16 x 16 matrices, from oR and F.
__device__ void inside_the_chunk(float scale, Shared& s) {
  for (int pair = static_cast<int>(threadIdx.x); pair < C * C;
       pair += static_cast<int>(blockDim.x)) {
    const int t = pair / C;
    const int j = pair % C;
    const float oR = t >= j ? scale * s.oR[t][j] : 0.0f;
    const float F = t > j ? s.F[t][j] : 0.0f;
    const float Y = oR * s.eta[j];
    const float E = -F * s.eta[j];
    const float G = s.G[t + 1][j + 1];
    const float H = t > j ? s.H[t + 1][j + 1] : 0.0f;
    s.dP[t][j] = Y * G;
    s.dG[t][j] = Y * s.P[t][j];
    s.Z[t][j] = E * H;
    s.dH[t][j] = E * s.KK[t][j];
    s.dEta[t][j] = oR * s.P[t][j] * G - F * H * s.KK[t][j];
  }
}

/// The reverse recurrence of the masks, t = 16..1, columns j = 0..16 on lanes:
///
///     gG = cG + dG[t,j];  gMu = cMu + dMu[t,j] + beta gG;  gH = dH[t,j];  gA = cA + da_t
///     dbeta = sum gG Mu[t,j];               dmu = sum gMu Mu[t-1,j]
///     dalpha = sum gG G[t-1,j] + gA a;      dpi = sum gH G[t-1,j] + de_t a       (a of t-1)
///     cG = alpha gG + pi gH;  cMu = mu gMu;  cA = alpha gA + pi de_t
///
/// Warps 0..3 run it alike and sum dbeta, dmu, dalpha and dpi.
__device__ void gate_gradients(const GradientsParams& p, const Place& at, Shared& s) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (warp > 3) {
    return;
  }
  const bool column = lane <= C;
  const int j = column ? lane : C;
  const bool tied = p.d_pi == nullptr;
  const float scale = p.tokens.scale;
  float values[C];
  float cG = 0.0f;
  float cMu = 0.0f;
  float cA = 0.0f;
#pragma unroll
  for (int t = C; t >= 1; --t) {
    float dG = 0.0f;
    float dMu = 0.0f;
    float dH = 0.0f;
    float da = scale * s.oS_q[t - 1];
    const float de = -s.wS_k[t - 1];
    if (j == 0) {
      dG = -scale * s.oS_q[C + t - 1];  // db_t
      dH = s.wS_k[C + t - 1];           // dc_t
    } else if (j <= t) {
      dG = s.dG[t - 1][j - 1];
      dH = s.dH[t - 1][j - 1];
    }
    if (t == C) {
      da += s.inner[0];
      if (j == 0) {
        dG -= s.inner[1];
        dMu = s.inner[2];
      } else {
        dG += s.eta[j - 1] * s.rS_k[j - 1];
        dMu = -s.eta[j - 1] * s.rS_k[C + j - 1];
      }
    }
    const float gG = cG + dG;
    const float gMu = cMu + dMu + s.beta[t - 1] * gG;
    const float gA = cA + da;
    const float G = j < t ? s.G[t - 1][j] : 0.0f;
    float value = 0.0f;
    if (warp == 0) {
      value = j <= t ? gG * s.Mu[t][j] : 0.0f;
    } else if (warp == 1) {
      value = j < t ? gMu * s.Mu[t - 1][j] : 0.0f;
    } else if (warp == 2) {
      value = (tied ? gG + dH : gG) * G + (j == 0 ? (tied ? gA + de : gA) * s.a[t - 1] : 0.0f);
    } else {
      value = dH * G + (j == 0 ? de * s.a[t - 1] : 0.0f);
    }
    values[t - 1] = column ? value : 0.0f;
    // Column t begins at row t: nothing is carried above it.
    cG = j < t ? s.alpha[t - 1] * gG + s.pi[t - 1] * dH : 0.0f;
    cMu = j < t ? s.mu[t - 1] * gMu : 0.0f;
    cA = s.alpha[t - 1] * gA + s.pi[t - 1] * de;
  }
  const float sum = transposed_sums(values);  // lane t: token t
  float* const to = warp == 0 ? p.d_beta : warp == 1 ? p.d_mu : warp == 2 ? p.d_alpha : p.d_pi;
  if (lane < at.length && to != nullptr) {
    to[(at.token + lane) * p.tokens.HV + at.head] = sum;
  }
}

/// deta_j = scale sum_t oR P G - sum_t F L + g_j k_j·rS_j - n_j k_j·rM_j
__device__ void eta_gradient(const GradientsParams& p, const Place& at, const Shared& s) {
  const int j = static_cast<int>(threadIdx.x);
  if (j < at.length) {
    float sum = s.G[C][j + 1] * s.rS_k[j] - s.Mu[C][j + 1] * s.rS_k[C + j];
    for (int t = 0; t < C; ++t) {
      sum += s.dEta[t][j];
    }
    p.d_eta[(at.token + j) * p.tokens.HV + at.head] = sum;
  }
}

/// The bounds leave 168, 255 and 128 registers a thread: blocks of 128 threads run three at a time.
template <int kThreadLimit>
__global__ void __launch_bounds__(kThreadLimit, kThreadLimit == kMinThreads ? 3 : 1)
    gradients(GradientsParams p) {
  extern __shared__ float4 shared[];
  auto& s = *reinterpret_cast<Shared*>(shared);
  const Tokens& x = p.tokens;
  const PortablePlan& plan = p.work.plan;
  const int K = static_cast<int>(x.K);
  const int stride = K | 1;  // odd: neither rows nor columns meet in one bank
  float* const q = reinterpret_cast<float*>(shared) + sizeof(Shared) / sizeof(float);
  float* const k = q + C * stride;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const bool active = thread < K;

  const int64_t qk_head = blockIdx.x % x.H;
  const int64_t in_window = blockIdx.x / x.H % p.count;
  const int64_t row = blockIdx.x / x.H / p.count;
  const Chunk chunk =
      p.work.table.chunks[row * plan.chunks_per_row + p.pass * plan.window + in_window];
  if (chunk.length == 0) {
    return;
  }
  Place at{chunk.token, chunk.length, 0, (row * plan.window + in_window) * x.HV};

  // q, k [16, K], normalised where the call says so
  for (int i = thread; i < C * K; i += threads) {
    const int t = i / K;
    const int64_t from = ((at.token + t) * x.H + qk_head) * x.K + i % K;
    const bool inside = t < at.length;
    q[t * stride + i % K] = inside ? load_element(x.q, from, x.dtype) : 0.0f;
    k[t * stride + i % K] = inside ? load_element(x.k, from, x.dtype) : 0.0f;
  }
  __syncthreads();
  if (x.l2norm) {
    for (int i = thread / 32; i < 2 * C; i += threads / 32) {
      float* values = i < C ? q + i * stride : k + (i - C) * stride;
      float sum = 0.0f;
      for (int column = thread % 32; column < K; column += 32) {
        sum += values[column] * values[column];
      }
      const float inverse = 1.0f / sqrtf(sum_of_lanes<32>(sum) + static_cast<float>(kL2NormEps));
      for (int column = thread % 32; column < K; column += 32) {
        values[column] *= inverse;
      }
      if (thread % 32 == 0) {
        s.inverse_norm[i] = inverse;
      }
    }
    __syncthreads();
  }
  for (int pair = thread; pair < C * C; pair += threads) {  // P = Q Kᵀ, KK = K Kᵀ
    const float* k_j = k + pair % C * stride;
    const float* q_t = q + pair / C * stride;
    const float* k_t = k + pair / C * stride;
    float P = 0.0f;
    float KK = 0.0f;
    for (int column = 0; column < K; ++column) {
      P += q_t[column] * k_j[column];
      KK += k_t[column] * k_j[column];
    }
    s.P[pair / C][pair % C] = P;
    s.KK[pair / C][pair % C] = KK;
  }

  float dQ[C] = {};
  float dK[C] = {};
  const int64_t group = x.HV / x.H;
  for (int64_t member = 0; member < group; ++member) {
    at.head = qk_head * group + member;
    __syncthreads();
    if (thread < C) {
      const int64_t from = (at.token + thread) * x.HV + at.head;
      const bool inside = thread < at.length;
      s.alpha[thread] = inside ? x.alpha[from] : 1.0f;
      s.mu[thread] = !inside ? 1.0f : x.mu != nullptr ? x.mu[from] : 0.0f;
      s.eta[thread] = inside ? x.eta[from] : 0.0f;
      s.beta[thread] = inside ? x.beta[from] : 0.0f;
      s.pi[thread] = inside ? x.pi[from] : 1.0f;
    }
    __syncthreads();
    if (thread < 32) {
      make_masks(s);  // visible after the next barrier, in sum_over_v
    }

    float xS[C];
    float xM[C];
    sum_over_v<Phase::kOutput>(p, at, s, xS, xM);
    row_dots(q, stride, active, xS, xM, s, s.oS_q);
#pragma unroll
    for (int t = 0; t < C; ++t) {  // dQ += scale (a oS - b oM)
      dQ[t] += x.scale * (s.a[t + 1] * xS[t] - s.G[t + 1][0] * xM[t]);
    }
    sum_over_v<Phase::kWrite>(p, at, s, xS, xM);
    row_dots(k, stride, active, xS, xM, s, s.wS_k);
#pragma unroll
    for (int t = 0; t < C; ++t) {  // dK -= e wS - c wM, e_t = pi_t a_{t-1}
      dK[t] -= s.pi[t] * s.a[t] * xS[t] - s.H[t + 1][0] * xM[t];
    }
    sum_over_v<Phase::kRead>(p, at, s, xS, xM);
    row_dots(k, stride, active, xS, xM, s, s.rS_k);
#pragma unroll
    for (int t = 0; t < C; ++t) {  // dK += D (g rS - n rM)
      dK[t] += s.eta[t] * (s.G[C][t + 1] * xS[t] - s.Mu[C][t + 1] * xM[t]);
    }

    inside_the_chunk(x.scale, s);
    __syncthreads();
    if (active) {
      float column[C];
#pragma unroll
      for (int j = 0; j < C; ++j) {
        column[j] = k[j * stride + thread];
      }
#pragma unroll
      for (int t = 0; t < C; ++t) {
#pragma unroll
        for (int j = 0; j < C; ++j) {  // dQ += dP K; dK += (Z + Zᵀ) K
          if (j <= t) {
            dQ[t] += s.dP[t][j] * column[j];
          }
          if (j < t) {
            dK[t] += s.Z[t][j] * column[j];
            dK[j] += s.Z[t][j] * column[t];
          }
        }
      }
#pragma unroll
      for (int t = 0; t < C; ++t) {
        const float q_t = q[t * stride + thread];
#pragma unroll
        for (int j = 0; j <= t; ++j) {  // dK += dPᵀ Q
          dK[j] += s.dP[t][j] * q_t;
        }
      }
    }
    gate_gradients(p, at, s);
    eta_gradient(p, at, s);
  }

  if (x.l2norm) {  // d(raw x) = (dx - x (x·dx)) / norm
    __syncthreads();
    float values[2 * C];
#pragma unroll
    for (int t = 0; t < C; ++t) {
      values[t] = active ? q[t * stride + thread] * dQ[t] : 0.0f;
      values[C + t] = active ? k[t * stride + thread] * dK[t] : 0.0f;
    }
    block_sums(values, s, s.norm);
  }
  if (active) {
#pragma unroll
    for (int t = 0; t < C; ++t) {
      if (t < at.length) {
        const int64_t to = ((at.token + t) * x.H + qk_head) * x.K + thread;
        float dq = dQ[t];
        float dk = dK[t];
        if (x.l2norm) {
          dq = s.inverse_norm[t] * (dq - q[t * stride + thread] * s.norm[t]);
          dk = s.inverse_norm[C + t] * (dk - k[t * stride + thread] * s.norm[C + t]);
        }
        store_element(p.d_q, to, x.dtype, within_range(dq, x.dtype));
        store_element(p.d_k, to, x.dtype, within_range(dk, x.dtype));
      }
    }
  }
}

}  // namespace

void window_gradients(const MomentumDeltaRuleBackward& call, const Workspace& work, int64_t pass,
                      cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const auto gate = [](void* x) { return static_cast<float*>(x); };
  GradientsParams p{};
  p.tokens = make_tokens(problem, call.inputs, nullptr);
  p.d_o = call.d_o;
  p.d_q = call.d_q;
  p.d_k = call.d_k;
  p.d_alpha = gate(call.d_alpha);
  p.d_mu = gate(call.d_mu);
  p.d_eta = gate(call.d_eta);
  p.d_beta = gate(call.d_beta);
  p.d_pi = gate(call.d_pi);
  p.work = work;
  p.pass = pass;
  p.count = std::min(work.plan.window, work.plan.chunks_per_row - pass * work.plan.window);
  const int threads = std::max(kMinThreads, static_cast<int>((problem.K + 31) / 32 * 32));
  const size_t shared =
      sizeof(Shared) + 2 * C * (static_cast<size_t>(problem.K) | 1) * sizeof(float);
  const int64_t blocks = work.plan.rows * p.count * problem.H;
  const auto kernel = threads == kMinThreads       ? gradients<kMinThreads>
                      : threads <= kMaxThreads / 2 ? gradients<kMaxThreads / 2>
                                                   : gradients<kMaxThreads>;
  launch("launch of portable gradients", kernel, blocks, threads, shared, stream, p);
}

}  // namespace mdn::kernels::cuda::portable
