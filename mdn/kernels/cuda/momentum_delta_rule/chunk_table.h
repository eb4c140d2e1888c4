// The chunks of a call: each sequence is cut into chunks of C tokens from its own first token on.
//
// Where sequences are packed their lengths are in device memory only, and nothing may wait for the
// device. So the table is made on the device, and grids are sized by max_chunks(); entries past the
// last chunk have length 0, and a block that gets one returns at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// One chunk. `token` counts through the whole [B, T]: row b's token t is b * T + t.
struct Chunk {
  int64_t token;     // first token
  int32_t sequence;  // 0 .. N - 1; -1 in unused entries
  int16_t length;    // 1 .. C; 0 in unused entries
  int16_t flags;     // kFirstChunk, kLastChunk of its sequence
};
static_assert(sizeof(Chunk) == 16);
inline constexpr int16_t kFirstChunk = 1;
inline constexpr int16_t kLastChunk = 2;

/// The table in device memory. Chunks of a sequence are consecutive, sequences in order.
struct ChunkTable {
  const Chunk* chunks = nullptr;   // [max_chunks]
  const int32_t* begin = nullptr;  // [N + 1]: sequence n has chunks begin[n] .. begin[n + 1] - 1
  int64_t max_chunks = 0;
};

/// Upper bound of the number of chunks; exact where sequences are not packed: B * ceil(T / C),
/// chunk c of row b being entry b * ceil(T / C) + c.
int64_t max_chunks(const MomentumDeltaRuleProblem& problem, int chunk_length);

/// Bytes of the table, a multiple of 256.
size_t chunk_table_bytes(const MomentumDeltaRuleProblem& problem, int chunk_length);

/// Queues the kernels that fill the table into `memory` (chunk_table_bytes, 256-byte aligned). They
/// also set `zero_words` 32-bit words at `zeros` to 0.
ChunkTable make_chunk_table(const MomentumDeltaRuleProblem& problem, int chunk_length, void* memory,
                            cudaStream_t stream, uint32_t* zeros = nullptr, int64_t zero_words = 0);

}  // namespace mdn::kernels::cuda
