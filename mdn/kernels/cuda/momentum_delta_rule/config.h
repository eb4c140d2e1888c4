// What the Hopper forward pass of momentum_delta_rule runs with: chosen by one function from sizes
// and device alone, so that the first call is as fast as any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

struct HopperForwardConfig {
  int value_tiles = 1;            // of 64 value channels a block of the recurrence
  int64_t prepare_blocks = 0;     // (chunk, query/key head)
  int64_t recurrence_blocks = 0;  // (sequence, value head, value_tiles * 64 channels of V)
};

/// Two tiles share a block, and so what is loaded of q, k, T and PGD, where the blocks still reach
/// at least 70% of the multiprocessors. K = 256 fills a block with one tile.
HopperForwardConfig choose_hopper_forward(const MomentumDeltaRuleProblem& problem,
                                          const DeviceFacts& device);

/// "value tiles 2 of 64, prepare 3072 blocks, recurrence 96 blocks"
std::string describe(const HopperForwardConfig& config);

}  // namespace mdn::kernels::cuda
