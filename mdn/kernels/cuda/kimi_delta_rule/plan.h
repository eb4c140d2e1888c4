// How the CUDA kernels of kimi_delta_rule cut a call, and what they leave for each other. Design:
// docs/design/kimi_delta_rule_cuda.md.
//
// Sequences are cut into chunks of 16 tokens. A "place" is a chunk and a value head: what does not
// depend on the state is prepared for all places at once (a record each); states walk from chunk to
// chunk. Where all heads at once would need too much memory, they are handled in several passes,
// one after the other, in the same memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/kimi_delta_rule.h"

namespace mdn::kernels::cuda::kimi {

inline constexpr int kChunk = 16;         // tokens
inline constexpr int kMaxChannels = 128;  // of K and of V
inline constexpr int kGranule = 8;        // K and V are multiples of it: 16 bytes of 16-bit numbers
inline constexpr int kValueTile = 16;     // value channels of a warp
inline constexpr int kFragmentBytes = 512;  // of a 16 x 16 tile in the registers of a warp

/// Key channels in memory of the kernels: the rest of K is zeros.
constexpr int padded_keys(int64_t K) {
  return K <= 64 ? 64 : 128;
}

/// Offsets of what the prepare kernel leaves of a place. Tiles of 16 tokens by kK channels of
/// 16-bit numbers, swizzled: unit u (16 bytes) of row t lies at unit u ^ (t % 8). Matrices of 16 x
/// 16 tokens have rows of 32 bytes. Formulas: docs/math/kimi_delta_rule.md.
template <int kK>
struct Record {
  static constexpr int kTile = kChunk * kK * 2;
  static constexpr int kMatrix = kChunk * kChunk * 2;
  static constexpr int kKeys = 0;                         // since k
  static constexpr int kWrites = kKeys + kTile;           // until k
  static constexpr int kSolve = kWrites + kTile;          // (I + KK D)^-1 - I
  static constexpr int kDecay = kSolve + kMatrix;         // A(C, 0), float [kK]
  static constexpr int kBeta = kDecay + 4 * kK;           // float [16]
  static constexpr int kStateBytes = kBeta + 4 * kChunk;  // up to here: what states depend on
  static constexpr int kQueries = kStateBytes;            // scale since q
  static constexpr int kScores = kQueries + kTile;        // scale QK
  static constexpr int kForwardBytes = kScores + kMatrix;
  static constexpr int kSolveBack = kForwardBytes;  // (I + D KK)^-1 - I
  static constexpr int kBackwardBytes = kSolveBack + kMatrix;
  static constexpr int kFactors = kBackwardBytes;  // of l2norm: of q [16], of k [16], floats
  static constexpr int kBytes = kFactors + 4 * 2 * kChunk;
  static_assert(kBytes % 16 == 0);
};

/// The memory of a pass. Fragments are 16 x 16 tiles as a warp's registers hold them (A of ptx/
/// mma.cuh): rows of `states` and `d_states` are value channels, columns key channels; rows of R
/// and d_R are tokens, columns value channels. They are 16-bit numbers of the call's type.
struct Work {
  ChunkTable table;
  int64_t first_head = 0;  // value heads of this pass
  int64_t heads = 0;
  int64_t value_tiles = 0;           // of 16 channels
  unsigned char* records = nullptr;  // [places] of Record
  uint4* states = nullptr;           // [places, value_tiles, kK / 16, 32]: before each chunk
  uint4* d_states = nullptr;         // the same: gradients of the states after each chunk
  uint4* R = nullptr;                // [places, value_tiles, 32]
  uint4* d_R = nullptr;              // the same: gradients of R, that through Y = D R included

  /// Of entry `chunk` of the table and a value head of this pass.
  __host__ __device__ int64_t place(int64_t chunk, int64_t head) const {
    return chunk * heads + head - first_head;
  }
};

// The kernels, each for the value heads of `work`.

/// Records from q, k, alpha and beta.
void prepare(const KimiDeltaRuleProblem& problem, const KimiDeltaRuleInputs& inputs,
             const Work& work, cudaStream_t stream);
/// o and the final states.
void walk(const KimiDeltaRuleForward& call, const Work& work, cudaStream_t stream);
/// `states` and `R` of work, nothing else.
void walk_states(const KimiDeltaRuleProblem& problem, const KimiDeltaRuleInputs& inputs,
                 const Work& work, cudaStream_t stream);
/// `d_states` and `d_R` of work, d_v and the gradients of the initial states.
void walk_back(const KimiDeltaRuleBackward& call, const Work& work, cudaStream_t stream);
/// d_q, d_k, d_alpha and d_beta from all that the walks left.
void gradients(const KimiDeltaRuleBackward& call, const Work& work, cudaStream_t stream);

/// One token, any K and V up to kMaxStepChannels, float32 and 16-bit types.
inline constexpr int kMaxStepChannels = 512;
void step(const KimiDeltaRuleStep& call, cudaStream_t stream);

}  // namespace mdn::kernels::cuda::kimi
