// The portable kernels: any K, V <= 512, float32, float16 and bfloat16, float32 arithmetic without
// tensor cores, every GPU from sm_80 on. Token by token where states are concerned (each row of
// [V, K] is independent, so a group of lanes owns it in registers), chunks of 16 tokens where the
// gradients sum over V. No atomics: the same bits in every run. Design and memory:
// docs/design/momentum_delta_rule_portable.md.
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

inline constexpr int kPortableMaxChannels = 512;  // of K and of V

/// Bytes; the forward pass needs no workspace and saves nothing.
size_t portable_backward_workspace(const MomentumDeltaRuleProblem& problem);

void portable_forward(const MomentumDeltaRuleForward& call, cudaStream_t stream);
void portable_backward(const MomentumDeltaRuleBackward& call, cudaStream_t stream);

}  // namespace mdn::kernels::cuda
