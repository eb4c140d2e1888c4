// A single token for each of B sequences, rows of states as state_rows.cuh has them:
//
//     r = v - pi S k;  M <- mu M - eta r kᵀ;  S <- alpha S - beta M;  o = scale S q
//
// Without momentum M is no more than this token's -eta r kᵀ.
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/decode.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"
#include "mdn/kernels/cuda/state_rows.cuh"

namespace mdn::kernels::cuda {
namespace {

static_assert(kStepMaxChannels == kPortableMaxChannels);

struct StepParams {
  StateRows rows;
  const float* alpha;
  const float* mu;  // null with M: without momentum
  const float* eta;
  const float* beta;
  const float* pi;
  void* S;
  void* M;
};

template <class Tile, bool kMomentum>
__global__ void __launch_bounds__(kStepThreads) step_kernel(const StepParams p) {
  using P = typename Tile::P;
  constexpr int kSteps = Tile::kSteps, kPieces = Tile::kPieces, kWidth = Tile::kWidth;
  let_next_start();
  wait_for_previous();
  const Tile tile(p.rows);
  if (tile.at < 0) {
    return;
  }
  typename Tile::Vector S_pieces[kSteps][kPieces];
  typename Tile::Vector M_pieces[kSteps][kPieces];  // nothing without momentum
  tile.load(p.S, S_pieces);
  if constexpr (kMomentum) {
    tile.load(p.M, M_pieces);
  }
  typename Tile::Token token;
  tile.load(token);
  const float alpha = p.alpha[tile.gate];
  const float mu = kMomentum ? p.mu[tile.gate] : 0.0f;
  const float eta = p.eta[tile.gate];
  const float beta = p.beta[tile.gate];
  const float pi = p.pi[tile.gate];
  typename Tile::Columns q, k;
  float v[kSteps], o[kSteps];
  tile.unpack(token, q, k, v);
  const auto [q_factor, k_factor] = tile.factors(q, k);

#pragma unroll
  for (int row = 0; row < kSteps; ++row) {
    typename Tile::Columns S, M;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      P::unpack(S_pieces[row][j], S[j]);
      if constexpr (kMomentum) {
        P::unpack(M_pieces[row][j], M[j]);
      }
    }
    const float prediction = sum_of_lanes<Tile::kLanes>(Tile::dot(S, k)) * k_factor;  // S k
    const float write = eta * (v[row] - pi * prediction) * k_factor;                  // eta r
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {  // M = mu M - eta r k; S = alpha S - beta M
        if constexpr (kMomentum) {
          M[j][i] = mu * M[j][i] - write * k[j][i];
        } else {
          M[j][i] = -write * k[j][i];
        }
        S[j][i] = alpha * S[j][i] - beta * M[j][i];
      }
      if (tile.inside(row)) {
        tile.store(p.S, row, j, S[j]);
        if constexpr (kMomentum) {
          tile.store(p.M, row, j, M[j]);
        }
      }
    }
    o[row] = sum_of_lanes<Tile::kLanes>(Tile::dot(S, q)) * q_factor;
  }
  tile.store_o(o);
}

template <typename State, bool kMomentum>
void launch_step(StepParams p, int64_t heads, cudaStream_t stream) {
  with_tile<State, kMomentum ? 2 : 1>(p.rows, heads, [&](auto tag, const StateRows& rows) {
    using Tile = typename decltype(tag)::Type;
    p.rows = rows;
    launch_early("launch of momentum_delta_rule step", step_kernel<Tile, kMomentum>,
                 heads * rows.tiles, kStepThreads, 0, stream, p);
  });
}

template <bool kMomentum>
void launch_step(const StepParams& p, DType state_dtype, int64_t heads, cudaStream_t stream) {
  if (state_dtype == DType::kFloat16) {
    launch_step<__half, kMomentum>(p, heads, stream);
  } else {
    launch_step<float, kMomentum>(p, heads, stream);
  }
}

}  // namespace

void decode_step(const MomentumDeltaRuleStep& call, cudaStream_t stream) {
  const auto gate = [](const void* x) { return static_cast<const float*>(x); };
  const StepParams p{.rows = state_rows(call, {call.S, call.M}),
                     .alpha = gate(call.alpha),
                     .mu = gate(call.mu),
                     .eta = gate(call.eta),
                     .beta = gate(call.beta),
                     .pi = gate(call.pi ? call.pi : call.alpha),
                     .S = call.S,
                     .M = call.M};
  if (call.M != nullptr) {
    launch_step<true>(p, call.state_dtype, call.B * call.HV, stream);
  } else {
    launch_step<false>(p, call.state_dtype, call.B * call.HV, stream);
  }
}

}  // namespace mdn::kernels::cuda
