// Backwards, token by token; needs neither S nor M:
//
//     dS += scale do_t q_tᵀ;  dM -= beta_t dS;  dr_t = -eta_t dM k_t;  dv_t = dr_t;
//     dS <- alpha_t dS - pi_t dr_t k_tᵀ;  dM <- mu_t dM               (dS, dM: [V, K] like S, M)
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_rows.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_walk.h"

namespace mdn::kernels::cuda::portable {
namespace {

struct WalkBackParams {
  Tokens tokens;           // with d_o as v
  const float* d_final_S;  // [N, HV, V, K] or null
  const float* d_final_M;
  float* d_initial_S;  // or null
  float* d_initial_M;
  void* d_v;
  Workspace work;
  int64_t pass;
  int64_t walks_per_row;
  int64_t tiles;
  bool vector;
};

template <int kLanes>
__global__ void __launch_bounds__(kThreads, 3) walk_back_kernel(WalkBackParams p) {
  extern __shared__ float4 shared[];
  auto& tile = *reinterpret_cast<Tile<kLanes>*>(shared);
  const Tokens& x = p.tokens;
  const PortablePlan& plan = p.work.plan;
  const BlockPlace place(x.HV, p.tiles, kBlockRows<kLanes>);
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int local = group * kRowsPerGroup;
  const int64_t row_of_v = place.row0 + local;
  const int64_t state = x.V * x.K;

  // The block's walk starts at the last chunk that its sequence has in the window.
  const int64_t row = place.unit / p.walks_per_row;
  const int64_t first = p.pass * plan.window;
  const int64_t count = min(plan.window, plan.chunks_per_row - first);
  const Chunk* chunks = p.work.table.chunks + row * plan.chunks_per_row + first;
  int64_t chunk = p.walks_per_row == 1 ? count - 1 : place.unit % p.walks_per_row;
  if (chunk >= count || chunks[chunk].length == 0) {
    return;
  }
  const int64_t sequence = chunks[chunk].sequence;
  const bool to_end = (chunks[chunk].flags & kLastChunk) != 0;
  if (!to_end && chunk != count - 1) {
    return;
  }

  const int64_t carry = x.HV * state;  // of one row
  const auto carry_at = [&](int64_t pass) {
    return (pass % 2 * plan.rows + row) * carry + place.head * state;
  };
  const int64_t own = (sequence * x.HV + place.head) * state;
  Rows<kLanes> dS;
  Rows<kLanes> dM;
  if (to_end) {
    dS.read(p.d_final_S ? p.d_final_S + own : nullptr, row_of_v, x, lane, p.vector);
    dM.read(p.d_final_M ? p.d_final_M + own : nullptr, row_of_v, x, lane, p.vector);
  } else {
    dS.read(p.work.carry_S + carry_at(p.pass + 1), row_of_v, x, lane, p.vector);
    dM.read(p.work.carry_M + carry_at(p.pass + 1), row_of_v, x, lane, p.vector);
  }

  bool at_start = false;  // of the sequence
  for (; chunk >= 0 && !at_start; --chunk) {
    const Chunk here = chunks[chunk];
    at_start = (here.flags & kFirstChunk) != 0;
    const int64_t slot = (row * plan.window + chunk) * x.HV;
    dS.write(p.work.chunk_dS + (slot + place.head) * state, row_of_v, x, lane, p.vector);
    dM.write(p.work.chunk_dM + (slot + place.head) * state, row_of_v, x, lane, p.vector);
    load_tile<kLanes>(x, here.token, here.length, place.head, place.row0, tile);
    for (int t = here.length - 1; t >= 0; --t) {
      float k[kColumnsPerLane];
      float q[kColumnsPerLane];
      read_shared<kLanes>(tile.k[t], lane, k);
      read_shared<kLanes>(tile.q[t], lane, q);
#pragma unroll
      for (int i = 0; i < kRowsPerGroup; ++i) {
        const float d_o = x.scale * tile.v[t][local + i];
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) {  // dS += scale do q; dM -= beta dS
          dS.x[i][c] += d_o * q[c];
          dM.x[i][c] -= tile.beta[t] * dS.x[i][c];
        }
      }
      float dr[kRowsPerGroup];
#pragma unroll
      for (int i = 0; i < kRowsPerGroup; ++i) {  // dr = -eta dM k
        dr[i] = -tile.eta[t] * dM.dot(i, k);
      }
#pragma unroll
      for (int i = 0; i < kRowsPerGroup; ++i) {
        const float write = tile.pi[t] * dr[i];
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) {  // dS = alpha dS - pi dr k; dM = mu dM
          dS.x[i][c] = tile.alpha[t] * dS.x[i][c] - write * k[c];
          dM.x[i][c] *= tile.mu[t];
        }
        if (lane == i && row_of_v + i < x.V) {
          const int64_t at = (slot * kPortableChunk + t * x.HV + place.head) * x.V + row_of_v + i;
          p.work.dW[at] = dr[i];
          store_element(p.d_v, ((here.token + t) * x.HV + place.head) * x.V + row_of_v + i, x.dtype,
                        within_range(dr[i], x.dtype));
        }
      }
    }
  }

  if (!at_start) {
    dS.write(p.work.carry_S + carry_at(p.pass), row_of_v, x, lane, p.vector);
    dM.write(p.work.carry_M + carry_at(p.pass), row_of_v, x, lane, p.vector);
    return;
  }
  if (p.d_initial_S != nullptr) {
    dS.write(p.d_initial_S + own, row_of_v, x, lane, p.vector);
  }
  if (p.d_initial_M != nullptr) {
    dM.write(p.d_initial_M + own, row_of_v, x, lane, p.vector);
  }
}

}  // namespace

void walk_back(const MomentumDeltaRuleBackward& call, const Workspace& work, int64_t pass,
               cudaStream_t stream) {
  WalkBackParams p{};
  p.tokens = make_tokens(call.problem, call.inputs, call.d_o);
  p.d_final_S = static_cast<const float*>(call.d_final_S);
  p.d_final_M = static_cast<const float*>(call.d_final_M);
  p.d_initial_S = static_cast<float*>(call.d_initial_S);
  p.d_initial_M = static_cast<float*>(call.d_initial_M);
  p.d_v = call.d_v;
  p.work = work;
  p.pass = pass;
  p.walks_per_row = walks_per_row(call.problem, work.plan);
  p.vector = rows_are_aligned(call.problem.K,
                              {call.d_final_S, call.d_final_M, call.d_initial_S, call.d_initial_M});
  with_lanes(call.problem.K, [&](auto lanes) {
    constexpr int kLanes = lanes;
    p.tiles = (call.problem.V + kBlockRows<kLanes> - 1) / kBlockRows<kLanes>;
    launch("launch of portable walk back", walk_back_kernel<kLanes>,
           work.plan.rows * p.walks_per_row * call.problem.HV * p.tiles, kThreads,
           sizeof(Tile<kLanes>), stream, p);
  });
}

}  // namespace mdn::kernels::cuda::portable
