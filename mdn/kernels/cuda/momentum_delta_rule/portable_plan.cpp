#include "mdn/kernels/cuda/momentum_delta_rule/portable_plan.h"

#include <algorithm>
#include <cmath>

#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {
namespace {

// Windows are at least as large as fits here: fewer launches, and more blocks at once.
constexpr int64_t kWindowBytes = int64_t{64} << 20;

}  // namespace

PortablePlan portable_plan(const MomentumDeltaRuleProblem& problem) {
  const auto& p = problem;
  PortablePlan plan;
  plan.rows = p.B;
  plan.chunks_per_row = max_chunks(p, kPortableChunk) / p.B;
  const int64_t state = p.B * p.HV * p.V * p.K * int64_t{sizeof(float)};  // one of S, M, dS, dM
  const int64_t rows_of_v = p.B * kPortableChunk * p.HV * p.V * int64_t{sizeof(float)};
  // window * 4 states + (chunks / window) * 2 states is least at sqrt(chunks / 2).
  const auto least = static_cast<int64_t>(std::ceil(std::sqrt(plan.chunks_per_row / 2.0)));
  const int64_t fits = kWindowBytes / (4 * state + 2 * rows_of_v);
  plan.window = std::clamp<int64_t>(std::max(least, fits), 1, plan.chunks_per_row);
  plan.passes = (plan.chunks_per_row + plan.window - 1) / plan.window;

  const auto take = [&plan](int64_t bytes) {
    const size_t offset = plan.bytes;
    plan.bytes += round_up(static_cast<size_t>(bytes));
    return offset;
  };
  plan.table = take(static_cast<int64_t>(chunk_table_bytes(p, kPortableChunk)));
  const int64_t starts = plan.passes > 1 ? plan.passes * state : 0;
  plan.starts_S = take(starts);
  plan.starts_M = take(starts);
  plan.chunk_S = take(plan.window * state);
  plan.chunk_M = take(plan.window * state);
  plan.chunk_dS = take(plan.window * state);
  plan.chunk_dM = take(plan.window * state);
  plan.R = take(plan.window * rows_of_v);
  plan.dW = take(plan.window * rows_of_v);
  const int64_t carry = plan.passes > 1 ? 2 * state : 0;
  plan.carry_S = take(carry);
  plan.carry_M = take(carry);
  return plan;
}

size_t portable_backward_workspace(const MomentumDeltaRuleProblem& problem) {
  return portable_plan(problem).bytes;
}

}  // namespace mdn::kernels::cuda
