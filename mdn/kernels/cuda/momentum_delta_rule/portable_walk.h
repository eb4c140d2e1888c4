// The portable walk over tokens, forwards: the forward pass itself, and the two walks that give the
// portable backward pass its states. Internal to the portable files.
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/cuda/momentum_delta_rule/portable_plan.h"

namespace mdn::kernels::cuda::portable {

/// Pointers of the plan into the workspace.
struct Workspace {
  PortablePlan plan;
  ChunkTable table;
  float* starts_S;
  float* starts_M;
  float* chunk_S;
  float* chunk_M;
  float* chunk_dS;
  float* chunk_dM;
  float* R;
  float* dW;
  float* carry_S;
  float* carry_M;
};

/// One walk over everything, which leaves the states where windows 1, 2, ... start.
void walk_to_starts(const MomentumDeltaRuleProblem& problem, const MomentumDeltaRuleInputs& inputs,
                    const Workspace& work, cudaStream_t stream);

/// The walk over window `pass`: chunk_S, chunk_M and R.
void walk_window(const MomentumDeltaRuleProblem& problem, const MomentumDeltaRuleInputs& inputs,
                 const Workspace& work, int64_t pass, cudaStream_t stream);

/// Backwards over window `pass`: chunk_dS, chunk_dM, dW, d_v and, where sequences begin, the
/// gradients of the initial states.
void walk_back(const MomentumDeltaRuleBackward& call, const Workspace& work, int64_t pass,
               cudaStream_t stream);

/// The gradients of q, k and the gates in window `pass`, from all that the walks left.
void window_gradients(const MomentumDeltaRuleBackward& call, const Workspace& work, int64_t pass,
                      cudaStream_t stream);

}  // namespace mdn::kernels::cuda::portable
