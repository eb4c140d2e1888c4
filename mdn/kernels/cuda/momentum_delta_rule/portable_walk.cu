// Forwards, token by token:
//
//     r_t = v_t - pi_t S k_t;  M <- mu_t M - eta_t r_t k_tᵀ;  S <- alpha_t S - beta_t M;
//     o_t = scale S q_t
// with S and M [V, K], a row a group of lanes.
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_rows.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_walk.h"

namespace mdn::kernels::cuda::portable {
namespace {

enum class Walk {
  kOutput,  // whole sequences: o and the final states
  kStarts,  // whole sequences: the states where windows start
  kWindow,  // one window: the states where chunks start, and r
};

struct WalkParams {
  Tokens tokens;
  const float* initial_S;  // [N, HV, V, K] or null
  const float* initial_M;
  const int64_t* cu_seqlens;
  int64_t T;
  int64_t tiles;
  bool vector;
  void* o;         // kOutput
  float* final_S;  // or null
  float* final_M;
  Workspace work;  // kStarts, kWindow
  int64_t pass;    // kWindow
  int64_t walks_per_row;
};

/// Where a block walks: tokens [token, end) of sequence n, the first of them in chunk `chunk` of
/// the row (kStarts) or of the window (kWindow).
struct Span {
  int64_t row = 0;
  int64_t sequence = 0;
  int64_t token = 0;
  int64_t end = 0;
  int64_t chunk = 0;
  bool from_start = true;  // of the sequence
};

template <Walk kWalk>
__device__ bool find_span(const WalkParams& p, int64_t unit, Span& span) {
  if constexpr (kWalk == Walk::kWindow) {
    const PortablePlan& plan = p.work.plan;
    span.row = unit / p.walks_per_row;
    span.chunk = unit % p.walks_per_row;
    const int64_t first = p.pass * plan.window;  // chunk of the row where the window starts
    const int64_t count = min(plan.window, plan.chunks_per_row - first);
    if (span.chunk >= count) {
      return false;
    }
    const Chunk chunk = p.work.table.chunks[span.row * plan.chunks_per_row + first + span.chunk];
    span.from_start = (chunk.flags & kFirstChunk) != 0;
    if (chunk.length == 0 || (span.chunk > 0 && !span.from_start)) {
      return false;  // the block of the sequence's first chunk in the window walks over this one
    }
    span.sequence = chunk.sequence;
    span.token = chunk.token;
    const int64_t end = p.cu_seqlens ? p.cu_seqlens[span.sequence + 1] : (span.sequence + 1) * p.T;
    span.end = min(end, span.token + (count - span.chunk) * kPortableChunk);
  } else {
    span.sequence = unit;
    span.token = p.cu_seqlens ? p.cu_seqlens[unit] : unit * p.T;
    span.end = p.cu_seqlens ? p.cu_seqlens[unit + 1] : (unit + 1) * p.T;
    if constexpr (kWalk == Walk::kStarts) {
      span.row = p.cu_seqlens ? 0 : unit;
      span.chunk = p.cu_seqlens ? p.work.table.begin[unit] : 0;
    }
  }
  return true;
}

template <int kLanes, Walk kWalk>
__global__ void __launch_bounds__(kThreads, 3) walk(WalkParams p) {
  extern __shared__ float4 shared[];
  auto& tile = *reinterpret_cast<Tile<kLanes>*>(shared);
  const Tokens& x = p.tokens;
  const BlockPlace place(x.HV, p.tiles, kBlockRows<kLanes>);
  Span span;
  if (!find_span<kWalk>(p, place.unit, span)) {
    return;
  }
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int local = group * kRowsPerGroup;  // row in the block
  const int64_t row = place.row0 + local;
  const int64_t state = x.V * x.K;
  const PortablePlan& plan = p.work.plan;

  Rows<kLanes> S;
  Rows<kLanes> M;
  if (kWalk != Walk::kWindow || span.from_start) {
    const int64_t at = (span.sequence * x.HV + place.head) * state;
    S.read(p.initial_S ? p.initial_S + at : nullptr, row, x, lane, p.vector);
    M.read(p.initial_M ? p.initial_M + at : nullptr, row, x, lane, p.vector);
  } else {
    const int64_t at = ((span.row * plan.passes + p.pass) * x.HV + place.head) * state;
    S.read(p.work.starts_S + at, row, x, lane, p.vector);
    M.read(p.work.starts_M + at, row, x, lane, p.vector);
  }

  int64_t chunk = span.chunk;
  for (int64_t token = span.token; token < span.end; token += kPortableChunk, ++chunk) {
    const int length = static_cast<int>(min(int64_t{kPortableChunk}, span.end - token));
    const int64_t slot = (span.row * plan.window + chunk) * x.HV;  // kWindow
    if constexpr (kWalk == Walk::kWindow) {
      S.write(p.work.chunk_S + (slot + place.head) * state, row, x, lane, p.vector);
      M.write(p.work.chunk_M + (slot + place.head) * state, row, x, lane, p.vector);
    }
    if constexpr (kWalk == Walk::kStarts) {
      if (chunk > 0 && chunk % plan.window == 0) {
        const int64_t pass = chunk / plan.window;
        const int64_t at = ((span.row * plan.passes + pass) * x.HV + place.head) * state;
        S.write(p.work.starts_S + at, row, x, lane, p.vector);
        M.write(p.work.starts_M + at, row, x, lane, p.vector);
      }
    }
    load_tile<kLanes>(x, token, length, place.head, place.row0, tile);
    for (int t = 0; t < length; ++t) {
      float k[kColumnsPerLane];
      read_shared<kLanes>(tile.k[t], lane, k);
      float r[kRowsPerGroup];
#pragma unroll
      for (int i = 0; i < kRowsPerGroup; ++i) {  // r = v - pi S k
        r[i] = tile.v[t][local + i] - tile.pi[t] * S.dot(i, k);
      }
#pragma unroll
      for (int i = 0; i < kRowsPerGroup; ++i) {
        const float write = tile.eta[t] * r[i];
#pragma unroll
        for (int c = 0; c < kColumnsPerLane; ++c) {  // M = mu M - eta r k; S = alpha S - beta M
          M.x[i][c] = tile.mu[t] * M.x[i][c] - write * k[c];
          S.x[i][c] = tile.alpha[t] * S.x[i][c] - tile.beta[t] * M.x[i][c];
        }
      }
      if constexpr (kWalk == Walk::kOutput) {
        float q[kColumnsPerLane];
        read_shared<kLanes>(tile.q[t], lane, q);
#pragma unroll
        for (int i = 0; i < kRowsPerGroup; ++i) {  // o = scale S q
          const float o = x.scale * S.dot(i, q);
          if (lane == i && row + i < x.V) {
            store_element(p.o, ((token + t) * x.HV + place.head) * x.V + row + i, x.dtype,
                          within_range(o, x.dtype));
          }
        }
      }
      if constexpr (kWalk == Walk::kWindow) {
        // R: [slot, 16, HV, V]
        float* to = p.work.R + (slot * kPortableChunk + t * x.HV + place.head) * x.V;
#pragma unroll
        for (int i = 0; i < kRowsPerGroup; ++i) {
          if (lane == i && row + i < x.V) {
            to[row + i] = r[i];
          }
        }
      }
    }
  }

  if constexpr (kWalk == Walk::kOutput) {
    const int64_t at = (span.sequence * x.HV + place.head) * state;
    if (p.final_S != nullptr) {
      S.write(p.final_S + at, row, x, lane, p.vector);
    }
    if (p.final_M != nullptr) {
      M.write(p.final_M + at, row, x, lane, p.vector);
    }
  }
}

template <Walk kWalk>
void launch_walk(const char* name, WalkParams p, int64_t units, cudaStream_t stream) {
  with_lanes(p.tokens.K, [&](auto lanes) {
    constexpr int kLanes = lanes;
    p.tiles = (p.tokens.V + kBlockRows<kLanes> - 1) / kBlockRows<kLanes>;
    launch(name, walk<kLanes, kWalk>, units * p.tokens.HV * p.tiles, kThreads, sizeof(Tile<kLanes>),
           stream, p);
  });
}

WalkParams walk_params(const MomentumDeltaRuleProblem& problem,
                       const MomentumDeltaRuleInputs& inputs) {
  WalkParams p{};
  p.tokens = make_tokens(problem, inputs, inputs.v);
  p.initial_S = static_cast<const float*>(inputs.initial_S);
  p.initial_M = static_cast<const float*>(inputs.initial_M);
  p.cu_seqlens = problem.cu_seqlens;
  p.T = problem.T;
  p.vector = rows_are_aligned(problem.K, {inputs.initial_S, inputs.initial_M});
  return p;
}

}  // namespace

void walk_to_starts(const MomentumDeltaRuleProblem& problem, const MomentumDeltaRuleInputs& inputs,
                    const Workspace& work, cudaStream_t stream) {
  WalkParams p = walk_params(problem, inputs);
  p.work = work;
  launch_walk<Walk::kStarts>("launch of portable walk (starts)", p, problem.N, stream);
}

void walk_window(const MomentumDeltaRuleProblem& problem, const MomentumDeltaRuleInputs& inputs,
                 const Workspace& work, int64_t pass, cudaStream_t stream) {
  WalkParams p = walk_params(problem, inputs);
  p.work = work;
  p.pass = pass;
  p.walks_per_row = walks_per_row(problem, work.plan);
  launch_walk<Walk::kWindow>("launch of portable walk (window)", p,
                             work.plan.rows * p.walks_per_row, stream);
}

}  // namespace mdn::kernels::cuda::portable

namespace mdn::kernels::cuda {

void portable_forward(const MomentumDeltaRuleForward& call, cudaStream_t stream) {
  using namespace portable;
  WalkParams p = walk_params(call.problem, call.inputs);
  p.o = call.o;
  p.final_S = static_cast<float*>(call.final_S);
  p.final_M = static_cast<float*>(call.final_M);
  p.vector = p.vector && rows_are_aligned(call.problem.K, {call.final_S, call.final_M});
  launch_walk<Walk::kOutput>("launch of portable walk (output)", p, call.problem.N, stream);
}

}  // namespace mdn::kernels::cuda
