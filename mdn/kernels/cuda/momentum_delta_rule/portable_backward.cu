// The portable backward pass: windows of chunks, last window first (portable_plan.h says why).
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable_walk.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kThreads = 256;

/// A sequence without tokens hands its gradients through; it has no chunk that could.
__global__ void __launch_bounds__(kThreads)
    pass_empty_sequences(const int64_t* __restrict__ cu_seqlens, int64_t state,
                         const float* __restrict__ d_final, float* __restrict__ d_initial) {
  const int64_t n = blockIdx.x;
  if (cu_seqlens[n] != cu_seqlens[n + 1]) {
    return;
  }
  for (int64_t i = threadIdx.x; i < state; i += kThreads) {
    d_initial[n * state + i] = d_final ? d_final[n * state + i] : 0.0f;
  }
}

portable::Workspace workspace(const PortablePlan& plan, void* memory) {
  const auto at = [memory](size_t offset) {
    return reinterpret_cast<float*>(static_cast<char*>(memory) + offset);
  };
  portable::Workspace work{};
  work.plan = plan;
  work.starts_S = at(plan.starts_S);
  work.starts_M = at(plan.starts_M);
  work.chunk_S = at(plan.chunk_S);
  work.chunk_M = at(plan.chunk_M);
  work.chunk_dS = at(plan.chunk_dS);
  work.chunk_dM = at(plan.chunk_dM);
  work.R = at(plan.R);
  work.dW = at(plan.dW);
  work.carry_S = at(plan.carry_S);
  work.carry_M = at(plan.carry_M);
  return work;
}

}  // namespace

void portable_backward(const MomentumDeltaRuleBackward& call, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const PortablePlan plan = portable_plan(problem);
  portable::Workspace work = workspace(plan, call.workspace);
  work.table = make_chunk_table(problem, kPortableChunk,
                                static_cast<char*>(call.workspace) + plan.table, stream);
  if (plan.passes > 1) {
    portable::walk_to_starts(problem, call.inputs, work, stream);
  }
  for (int64_t pass = plan.passes - 1; pass >= 0; --pass) {
    portable::walk_window(problem, call.inputs, work, pass, stream);
    portable::walk_back(call, work, pass, stream);
    portable::window_gradients(call, work, pass, stream);
  }
  if (problem.cu_seqlens != nullptr) {
    const int64_t state = problem.HV * problem.V * problem.K;
    const auto pass_through = [&](const void* d_final, void* d_initial) {
      if (d_initial != nullptr) {
        launch("launch of pass_empty_sequences", pass_empty_sequences, problem.N, kThreads, 0,
               stream, problem.cu_seqlens, state, static_cast<const float*>(d_final),
               static_cast<float*>(d_initial));
      }
    };
    pass_through(call.d_final_S, call.d_initial_S);
    pass_through(call.d_final_M, call.d_initial_M);
  }
}

}  // namespace mdn::kernels::cuda
