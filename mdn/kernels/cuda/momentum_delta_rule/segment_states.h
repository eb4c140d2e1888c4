// The states that segments start with, and the gradients of those that they end with, from the
// segments' maps (hopper_segments.h).
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// A is rounded column by column: A e_i is off by some share of |A e_i|. Where the columns' sum A x
/// is much smaller than they are, it is nothing but that. So what a map makes of x is used in a
/// value channel where, for its S and for its M,
///
///     sqrt(sum_i |A e_i|^2 x_i^2) <= kLargestLoss max |x|
///
/// over the segments' x so far, the new one included (of x S alone in the test of S: M is made of
/// errors of predictions, which are small differences in a walk too). Rounding is then at most some
/// kLargestLoss times what it is where the states are walked. What is not finite is never used.
inline constexpr float kLargestLoss = 8;

/// Channels of V that a block of either kernel takes.
inline constexpr int kSegmentStateChannels = 8;

/// Queues X_{s+1} = A_s X_s + b_s for every sequence, head and segment, in fp32; X_0 are the
/// initial states, and start_S, start_M hold b. Raises memory.unknown where a map is not used.
void launch_segment_states(const MomentumDeltaRuleProblem& problem,
                           const MomentumDeltaRuleInputs& inputs, int segments,
                           const SegmentMemory& memory, cudaStream_t stream);

/// Queues dX_{s-1} = A_s^T dX_s + b_s, dX_s being the gradient of what segment s ends with; that of
/// the last one is the final states'. end_S, end_M hold b. Raises ends.unknown where a map is not
/// used, and everywhere where the forward pass could not use one.
void launch_segment_ends(const MomentumDeltaRuleBackward& call, int segments,
                         const SegmentMemory& memory, const SegmentEnds& ends, cudaStream_t stream);

}  // namespace mdn::kernels::cuda
