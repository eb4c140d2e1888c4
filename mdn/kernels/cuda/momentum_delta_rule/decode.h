// One token for each of B sequences (docs/design/momentum_delta_rule_decode.md).
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// The call has passed check(); K and V are at most 512. Capturable in a graph.
void decode_step(const MomentumDeltaRuleStep& call, cudaStream_t stream);

}  // namespace mdn::kernels::cuda
