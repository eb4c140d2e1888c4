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
  bool split = false;             // two warpgroups share the key channels: K = 256
  int value_tiles = 1;            // of 64 value channels a block of the recurrence
  int64_t prepare_items = 0;      // (chunk, query/key head)
  int64_t prepare_blocks = 0;     // that take them
  int64_t shared_items = 0;       // everyone's, the others being the helpers' (hopper_progress.cuh)
  int helpers_from = 0;           // first multiprocessor of the helpers
  bool shared_walks = false;      // blocks share walks (hopper_recurrence_work.cuh)
  int segments = 1;               // that every sequence is cut into (hopper_segments.h)
  int64_t map_blocks = 0;         // of the segments' maps
  int64_t recurrence_blocks = 0;  // (segment, value head, value_tiles * 64 channels of V)
};

/// Two tiles share a block, and so what is loaded of q, k, T and PGD, where the blocks still reach
/// at least 70% of the multiprocessors.
HopperForwardConfig choose_hopper_forward(const MomentumDeltaRuleProblem& problem,
                                          const DeviceFacts& device);

/// "prepare 660 blocks, 1.2k of 3k items late, recurrence 96 blocks of 2 tiles"
std::string describe(const HopperForwardConfig& config);

}  // namespace mdn::kernels::cuda
