// How the portable backward pass cuts its work, shared by its three kernels.
//
// It needs the states and their gradients at every chunk's start and end, too much to keep for all
// tokens. So the chunks of a row are taken in windows, last window first: the states of one window
// are recomputed from the state at its start, its gradients are formed, and the memory is reused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

inline constexpr int kPortableChunk = 16;  // tokens

/// A row is a batch row, or the whole of packed sequences. Memory is in floats; a "slot" is a chunk
/// of the window: slot (b * window + c) of row b, chunk c of the window.
struct PortablePlan {
  int64_t rows = 0;
  int64_t chunks_per_row = 0;  // an upper bound where sequences are packed
  int64_t window = 0;          // chunks of a row that are handled at once
  int64_t passes = 0;          // windows of a row

  // Offsets in bytes into the workspace.
  size_t table = 0;
  size_t starts_S = 0;  // [rows, passes, HV, V, K] states where windows start; none if passes == 1
  size_t starts_M = 0;
  size_t chunk_S = 0;  // [rows, window, HV, V, K] states where chunks start
  size_t chunk_M = 0;
  size_t chunk_dS = 0;  // the same shape: gradients of the states where chunks end
  size_t chunk_dM = 0;
  size_t R = 0;        // [rows, window, 16, HV, V]
  size_t dW = 0;       // the same shape
  size_t carry_S = 0;  // [2, rows, HV, V, K] gradients where windows start, by parity of the pass
  size_t carry_M = 0;
  size_t bytes = 0;  // of the whole
};

PortablePlan portable_plan(const MomentumDeltaRuleProblem& problem);

}  // namespace mdn::kernels::cuda
