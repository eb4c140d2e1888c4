// general_momentum_masks: a block a chunk, a thread a column, which walks the tokens. The backward
// pass walks once more, then backwards, and sums over columns with a thread a token.
#include "mdn/kernels/general_momentum_masks.h"

#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int C = kMaskTokens;
constexpr int kColumnOfM = C, kColumnOfS = C + 1, kColumns = C + 2;
constexpr int kThreads = 96;  // whole warps
constexpr int kStride =
    kColumns + 1;  // of rows in shared memory: odd, so that columns are banks too

enum Coefficient { kAlpha, kMu, kEta, kBeta, kKappa, kLambda, kPi };

struct Coefficients {
  float of[kMaskCoefficients][C];

  __device__ void load(const float* from, int64_t chunks, int64_t chunk) {
    for (int i = static_cast<int>(threadIdx.x); i < kMaskCoefficients * C; i += kThreads) {
      of[i / C][i % C] = from[(i / C * chunks + chunk) * C + i % C];
    }
  }
};

/// What a column is before its first token t > first.
struct Column {
  int first;  // the token that writes it; -1 for the states
  float mu, g;

  __device__ Column(int j, const Coefficients& x)
      : first(j < C ? j : -1),
        mu(j == kColumnOfS ? 0.0f : 1.0f),
        g(j == kColumnOfS   ? 1.0f
          : j == kColumnOfM ? 0.0f
                            : x.of[kBeta][j]) {}
};

__global__ void __launch_bounds__(kThreads)
    general_momentum_masks_forward_kernel(GeneralMomentumMasksForward call) {
  __shared__ Coefficients x;
  const int64_t chunk = blockIdx.x;
  x.load(call.coefficients, call.chunks, chunk);
  __syncthreads();
  const auto j = static_cast<int>(threadIdx.x);
  if (j >= kColumns) {
    return;
  }
  const float eta = j < C ? x.of[kEta][j] : 0.0f;
  float* G = call.G + chunk * C * C;
  float* H = call.H + chunk * C * C;
  float* from_states = call.from_states + chunk * C * 2;
  float* read = call.read + chunk * C * 2;
  Column column(j, x);
  for (int t = 0; t < C; ++t) {
    float h = 0, g = 0;
    if (t > column.first) {
      h = x.of[kPi][t] * column.g + x.of[kLambda][t] * column.mu;
      column.g = x.of[kAlpha][t] * column.g + x.of[kKappa][t] * column.mu;
      column.mu *= x.of[kMu][t];
    }
    if (t >= column.first) {
      g = column.g;
    }
    if (j < C) {
      G[t * C + j] = g * eta;
      H[t * C + j] = h * eta;
    } else if (j == kColumnOfM) {
      from_states[2 * t + 1] = h;
      read[2 * t + 1] = -g;
    } else {
      from_states[2 * t] = -h;
      read[2 * t] = g;
    }
  }
  if (j < C) {
    call.to_states[(chunk * C + j) * 2] = column.g * eta;
    call.to_states[(chunk * C + j) * 2 + 1] = -column.mu * eta;
  } else if (j == kColumnOfM) {
    call.ends[chunk * 3 + 1] = -column.g;
    call.ends[chunk * 3 + 2] = column.mu;
  } else {
    call.ends[chunk * 3] = column.g;
  }
}

/// Row t: the values before token t of every column, and what the gradients of token t's are.
struct BackwardShared {
  Coefficients x;
  float g[C][kStride], mu[C][kStride];                       // G[t-1,:], Mu[t-1,:]
  float d_g[C][kStride], d_mu[C][kStride], d_h[C][kStride];  // of G[t,:], Mu[t,:], H[t,:]
};

// For t = C ... 1, with carries of 0:
//   gG = cG + dG[t,:];   gMu = cMu + dMu[t,:];   gH = dH[t,:];   dbeta_t = gG[t]
//   dalpha_t = sum gG G[t-1,:];   dkappa_t = sum gG Mu[t-1,:];   dmu_t = sum gMu Mu[t-1,:]
//   dpi_t = sum gH G[t-1,:];   dlambda_t = sum gH Mu[t-1,:]
//   cG = alpha_t gG + pi_t gH;   cMu = mu_t gMu + kappa_t gG + lambda_t gH
__global__ void __launch_bounds__(kThreads)
    general_momentum_masks_backward_kernel(GeneralMomentumMasksBackward call) {
  extern __shared__ float memory[];
  auto& s = *reinterpret_cast<BackwardShared*>(memory);
  const int64_t chunk = blockIdx.x;
  s.x.load(call.coefficients, call.chunks, chunk);
  __syncthreads();
  const auto j = static_cast<int>(threadIdx.x);
  const auto put = [&](Coefficient which, int t, float value) {
    call.d_coefficients[(which * call.chunks + chunk) * C + t] = value;
  };
  if (j < kColumns) {
    Column column(j, s.x);
    const int first = column.first;
    for (int t = first + 1; t < C; ++t) {
      s.g[t][j] = column.g;
      s.mu[t][j] = column.mu;
      column.g = s.x.of[kAlpha][t] * column.g + s.x.of[kKappa][t] * column.mu;
      column.mu *= s.x.of[kMu][t];
    }
    const float eta = j < C ? s.x.of[kEta][j] : 1.0f;
    const float* d_G = call.d_G + chunk * C * C;
    const float* d_H = call.d_H + chunk * C * C;
    const float* d_from_states = call.d_from_states + chunk * C * 2;
    const float* d_read = call.d_read + chunk * C * 2;
    float d_eta = 0, carry_g = 0, carry_mu = 0;
    if (j < C) {
      const float* d_to_states = call.d_to_states + (chunk * C + j) * 2;
      d_eta = d_to_states[0] * column.g - d_to_states[1] * column.mu;
      carry_g = d_to_states[0] * eta;
      carry_mu = -d_to_states[1] * eta;
    } else if (j == kColumnOfM) {
      carry_g = -call.d_ends[chunk * 3 + 1];
      carry_mu = call.d_ends[chunk * 3 + 2];
    } else {
      carry_g = call.d_ends[chunk * 3];
    }
    float g = column.g;  // G[t,j]
    for (int t = C - 1; t > first; --t) {
      float d_g = 0, d_h = 0;  // of the scaled masks
      if (j < C) {
        d_g = d_G[t * C + j];
        d_h = d_H[t * C + j];
        d_eta += d_g * g + d_h * (s.x.of[kPi][t] * s.g[t][j] + s.x.of[kLambda][t] * s.mu[t][j]);
        d_g *= eta;
        d_h *= eta;
      } else if (j == kColumnOfM) {
        d_g = -d_read[2 * t + 1];
        d_h = d_from_states[2 * t + 1];
      } else {
        d_g = d_read[2 * t];
        d_h = -d_from_states[2 * t];
      }
      d_g += carry_g;
      s.d_g[t][j] = d_g;
      s.d_mu[t][j] = carry_mu;
      s.d_h[t][j] = d_h;
      carry_mu = s.x.of[kMu][t] * carry_mu + s.x.of[kKappa][t] * d_g + s.x.of[kLambda][t] * d_h;
      carry_g = s.x.of[kAlpha][t] * d_g + s.x.of[kPi][t] * d_h;
      g = s.g[t][j];
    }
    if (j < C) {
      const float d_g = d_G[j * C + j];
      put(kBeta, j, carry_g + d_g * eta);
      put(kEta, j, d_eta + d_g * g);
    }
  }
  __syncthreads();
  if (j < C) {
    const int t = j;
    float alpha = 0, mu = 0, kappa = 0, lambda = 0, pi = 0;
    const auto add = [&](int from) {
      alpha += s.d_g[t][from] * s.g[t][from];
      kappa += s.d_g[t][from] * s.mu[t][from];
      mu += s.d_mu[t][from] * s.mu[t][from];
      pi += s.d_h[t][from] * s.g[t][from];
      lambda += s.d_h[t][from] * s.mu[t][from];
    };
    for (int from = 0; from < t; ++from) {
      add(from);
    }
    add(kColumnOfM);
    add(kColumnOfS);
    put(kAlpha, t, alpha);
    put(kMu, t, mu);
    put(kKappa, t, kappa);
    put(kLambda, t, lambda);
    put(kPi, t, pi);
  }
}

}  // namespace

void general_momentum_masks_forward(const GeneralMomentumMasksForward& call, Stream stream) {
  launch("launch of general_momentum_masks_forward", general_momentum_masks_forward_kernel,
         call.chunks, kThreads, 0, static_cast<cudaStream_t>(stream), call);
}

void general_momentum_masks_backward(const GeneralMomentumMasksBackward& call, Stream stream) {
  launch("launch of general_momentum_masks_backward", general_momentum_masks_backward_kernel,
         call.chunks, kThreads, sizeof(BackwardShared), static_cast<cudaStream_t>(stream), call);
}

}  // namespace mdn::kernels::cuda
