// A single token for each of B sequences, rows of states as state_rows.cuh has them:
//
//     s = (diag(α) S)^T k,  y = (diag(α) S)^T q;   r = v - s;   o = scale (y + β (k·q) r)
//     S <- diag(α) S + β k r^T
#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/state_rows.cuh"

namespace mdn::kernels::cuda::kimi {
namespace {

static_assert(kStepMaxChannels == kMaxStepChannels);

struct StepParams {
  StateRows rows;
  const float* alpha;  // [B, HV, K]
  const float* beta;
  void* S;
};

template <class Tile>
__global__ void __launch_bounds__(kStepThreads) step_kernel(const StepParams p) {
  using P = typename Tile::P;
  constexpr int kSteps = Tile::kSteps, kPieces = Tile::kPieces, kWidth = Tile::kWidth;
  let_next_start();
  wait_for_previous();
  const Tile tile(p.rows);
  if (tile.at < 0) {
    return;
  }
  typename Tile::Vector pieces[kSteps][kPieces], alpha_pieces[kPieces];
  tile.load(p.S, pieces);
  typename Tile::Token token;
  tile.load(token);
  tile.load_row(p.alpha + int64_t{tile.gate} * tile.K, alpha_pieces);
  const float beta = p.beta[tile.gate];
  typename Tile::Columns q, k, alpha;
  float v[kSteps], o[kSteps];
  tile.unpack(token, q, k, v);
  const auto [q_factor, k_factor] = tile.factors(q, k);
  const float kq = q_factor * k_factor * sum_of_lanes<Tile::kLanes>(Tile::dot(k, q));
#pragma unroll
  for (int j = 0; j < kPieces; ++j) {
    P::unpack(alpha_pieces[j], alpha[j]);
  }

#pragma unroll
  for (int row = 0; row < kSteps; ++row) {
    typename Tile::Columns S;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
      P::unpack(pieces[row][j], S[j]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        S[j][i] *= alpha[j][i];
      }
    }
    const float s = sum_of_lanes<Tile::kLanes>(Tile::dot(S, k));
    const float y = sum_of_lanes<Tile::kLanes>(Tile::dot(S, q));
    const float r = v[row] - k_factor * s;
    const float write = beta * k_factor * r;
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        S[j][i] += write * k[j][i];
      }
      if (tile.inside(row)) {
        tile.store(p.S, row, j, S[j]);
      }
    }
    o[row] = q_factor * y + beta * kq * r;
  }
  tile.store_o(o);
}

}  // namespace

void step(const KimiDeltaRuleStep& call, cudaStream_t stream) {
  StepParams p{.rows = state_rows(call, {call.S, call.alpha}),
               .alpha = static_cast<const float*>(call.alpha),
               .beta = static_cast<const float*>(call.beta),
               .S = call.S};
  const int64_t heads = call.B * call.HV;
  with_tile<float, 1>(p.rows, heads, [&](auto tag, const StateRows& rows) {
    p.rows = rows;
    launch_early("launch of kimi_delta_rule step", step_kernel<typename decltype(tag)::Type>,
                 heads * rows.tiles, kStepThreads, 0, stream, p);
  });
}

}  // namespace mdn::kernels::cuda::kimi
