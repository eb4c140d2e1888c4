// momentum_delta_rule, CPU backend: what a call needs, and how its tasks spread over threads.
// Design, floors and what was tried: docs/design/momentum_delta_rule_cpu.md.
#include "mdn/kernels/momentum_delta_rule.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/kernels/cpu/momentum_delta_rule_plan.h"

namespace mdn::kernels::cpu {
namespace {

/// Longest chunk. Short chunks spend their time on loading and storing states, long ones on the
/// products of the chunk with itself.
int64_t chunk_length(const MomentumDeltaRuleProblem& p) {
  const int64_t longest = 64;
  return std::min(longest, round_up(p.T, kPanel));
}

/// Bytes of state below which a step is not worth waking another thread.
constexpr int64_t kStepBytesPerTask = 128 * 1024;

/// Tokens that one task of the sum over heads takes.
constexpr int64_t kSumTokens = 256;

void check_workspace(const void* workspace) {
  MDN_CHECK(workspace != nullptr, "momentum_delta_rule: workspace is missing (a null pointer)");
}

void check_dtype(DType dtype) {
  MDN_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
            "momentum_delta_rule: the CPU backend has no {}; it has float32 and bfloat16",
            name_of(dtype));
}

int64_t head_rows(const MomentumDeltaRuleProblem& p, const Plan& plan) {
  return plan.shared ? round_up(p.B * p.T * p.HV * p.K, kPanel) : 0;
}

}  // namespace

Plan::Plan(const MomentumDeltaRuleProblem& p) {
  K = round_up(p.K, kPanel);
  V = round_up(p.V, kPanel);
  C = chunk_length(p);
  ld_k = row_stride(K);
  ld_x = row_stride(2 * K);
  ld_c = row_stride(C);
  ld_v = row_stride(V);
  panels = V / kPanel;
  state = 2 * K * V;
  segment = kSegmentChunks * C;
  saved_states = p.B * p.T / segment;
  shared = p.HV != p.H;
}

ForwardScratch::ForwardScratch(const Plan& plan, Scratch& scratch) {
  chunk.take(plan, scratch);
  k_transposed = scratch.take(plan.K * plan.ld_c);
  x = scratch.take(plan.state);
  r = scratch.take(plan.C * plan.ld_v);
  o = scratch.take(plan.C * plan.ld_v);
}

BackwardScratch::BackwardScratch(const Plan& plan, Scratch& scratch) {
  for (int64_t i = 0; i < kSegmentChunks; ++i) {
    chunk[i].take(plan, scratch);
    x_transposed[i] = scratch.take(plan.state);
    r[i] = scratch.take(plan.C * plan.ld_v);
  }
  k_transposed = scratch.take(plan.K * plan.ld_c);
  for (float** piece : {&x, &dx, &dx_transposed}) {
    *piece = scratch.take(plan.state);
  }
  for (float** piece : {&d_o, &dw, &r_transposed}) {
    *piece = scratch.take(plan.C * plan.ld_v);
  }
  for (float** piece : {&ox, &wx, &rx}) {
    *piece = scratch.take(plan.C * plan.ld_x);
  }
  for (float** piece : {&oR, &F, &dP, &Z}) {
    *piece = scratch.take(plan.C * plan.ld_c);
  }
  for (float** piece : {&dq, &dk}) {
    *piece = scratch.take(plan.C * plan.ld_k);
  }
  vectors = scratch.take(16 * plan.C);
}

int64_t Plan::forward_floats() const {
  Scratch count(nullptr);
  ForwardScratch(*this, count);
  return count.taken();
}

int64_t Plan::backward_floats() const {
  Scratch count(nullptr);
  BackwardScratch(*this, count);
  return count.taken();
}

std::string unsupported(const MomentumDeltaRuleProblem& problem) {
  if (problem.dtype != DType::kFloat32 && problem.dtype != DType::kBFloat16) {
    return fmt::format("the CPU backend has no {}; it has float32 and bfloat16",
                       name_of(problem.dtype));
  }
  return "";
}

MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& p) {
  const Plan plan(p);
  const int64_t threads = num_threads();
  MomentumDeltaRuleSizes sizes;
  sizes.forward_workspace = sizeof(float) * static_cast<size_t>(threads * plan.forward_floats());
  sizes.backward_workspace = sizeof(float) * static_cast<size_t>(threads * plan.backward_floats() +
                                                                 2 * head_rows(p, plan));
  sizes.saved = sizeof(float) * static_cast<size_t>(plan.saved_states * p.HV * plan.state);
  return sizes;
}

void forward(const MomentumDeltaRuleForward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_dtype(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const Plan plan(p);
  const int64_t floats = plan.forward_floats();
  float* workspace = static_cast<float*>(call.workspace);
  // Columns of V are independent, so how many tasks share a head changes no bit.
  const int64_t heads = p.N * p.HV;
  const int64_t tiles = std::clamp<int64_t>((num_threads() + heads - 1) / heads, 1, plan.panels);
  parallel_for(heads * tiles, [&](int64_t task, int thread) {
    const int64_t tile = task % tiles;
    const int64_t head = task / tiles;
    forward_task(call, plan, head / p.HV, head % p.HV, plan.panels * tile / tiles,
                 plan.panels * (tile + 1) / tiles, workspace + thread * floats);
  });
}

void backward(const MomentumDeltaRuleBackward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_dtype(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const Plan plan(p);
  MDN_CHECK(call.saved != nullptr || plan.saved_states == 0,
            "momentum_delta_rule: saved is missing (a null pointer); the backward pass of more "
            "than {} tokens needs what the forward pass saved",
            plan.segment);
  const int64_t floats = plan.backward_floats();
  float* head_dq = static_cast<float*>(call.workspace);
  float* head_dk = head_dq + head_rows(p, plan);
  float* workspace = head_dk + head_rows(p, plan);
  parallel_for(p.N * p.HV, [&](int64_t task, int thread) {
    backward_task(call, plan, task / p.HV, task % p.HV, head_dq, head_dk,
                  workspace + thread * floats);
  });
  if (plan.shared) {
    const int64_t tokens = p.B * p.T;
    parallel_for((tokens + kSumTokens - 1) / kSumTokens, [&](int64_t task, int) {
      const int64_t begin = task * kSumTokens;
      const int64_t end = std::min(begin + kSumTokens, tokens);
      sum_heads(p, head_dq, begin, end, call.d_q);
      sum_heads(p, head_dk, begin, end, call.d_k);
    });
  }
}

void step(const MomentumDeltaRuleStep& call) {
  check(call);
  check_dtype(call.dtype);
  check_slots(call);
  // Rows of the state are independent.
  const int64_t heads = call.B * call.HV;
  const int64_t bytes = 2 * call.V * call.K * static_cast<int64_t>(sizeof(float));
  const int64_t useful = std::max<int64_t>(heads * bytes / kStepBytesPerTask, 1);
  const int64_t wanted = std::min<int64_t>(useful, 4 * num_threads());
  const int64_t tiles = std::clamp<int64_t>((wanted + heads - 1) / heads, 1, call.V);
  const auto task = [&](int64_t index, int) {
    const int64_t tile = index % tiles;
    const int64_t b = index / tiles / call.HV;
    const int64_t head = index / tiles % call.HV;
    if (call.slots == nullptr || call.slots[b] >= 0) {
      step_task(call, b, head, call.V * tile / tiles, call.V * (tile + 1) / tiles);
    }
  };
  if (useful == 1) {
    for (int64_t index = 0; index < heads * tiles; ++index) {
      task(index, 0);
    }
  } else {
    parallel_for(heads * tiles, task);
  }
}

}  // namespace mdn::kernels::cpu
