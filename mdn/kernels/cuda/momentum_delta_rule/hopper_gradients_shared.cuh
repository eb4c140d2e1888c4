// Shared memory of the gradients kernel (hopper_gradients.cuh): what its producer, its consumer
// warpgroups and its mask warps hand to each other.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"

namespace mdn::kernels::cuda::backward_pass {

inline constexpr int kGradientThreads = 4 * 128;
inline constexpr int kConsumerThreads = 3 * 128;
inline constexpr int kMaskThreads = 96;
inline constexpr int kMaskThread = kGradientThreads - kMaskThreads;  // the first of them

template <bool kMomentum>
struct GradientsShared {
  static constexpr int kStages = 2;
  // Of a stage: S, M, dS, dM, dO, dW, R
  static constexpr int kBoxS = 0;
  static constexpr int kBoxM = kBoxS + 1;
  static constexpr int kBoxDS = kMomentum ? kBoxM + 1 : kBoxS + 1;
  static constexpr int kBoxDM = kBoxDS + 1;
  static constexpr int kBoxDO = kMomentum ? kBoxDM + 1 : kBoxDS + 1;
  static constexpr int kBoxR = kBoxDO + 2;
  static constexpr int kStageBoxes = kBoxR + 1;
  static constexpr int kStage = 0;
  static constexpr int kQK = kStage + kStages * kStageBoxes * kBox;  // q, k of the tile
  static constexpr int kDP = kQK + 2 * kBox;
  static constexpr int kZ = kDP + kBox;
  static constexpr int kVectors = kZ + kBox;
  static constexpr int kSmall = kVectors + 2 * kVectorBytes;
};

enum Gate { kAlpha, kMu, kEta, kBeta, kPi };

/// Two lower triangles in one array. Rows and columns count from 0, the chunk's start; token t of
/// the chunk (from 0) is row and column t + 1.
struct TrianglePair {
  static constexpr int kStride = 67;  // odd: no bank conflicts along rows or columns
  float x[65 * kStride];
  __device__ __forceinline__ float& lower(int t, int j) { return x[t * kStride + j]; }
  __device__ __forceinline__ float& upper(int t, int j) { return x[j * kStride + t + 1]; }
};

/// An item as the mask warps draw it for all of the block; a length of 0: there is none any more.
struct GradientsWork {
  int64_t token;
  int entry;
  int head;
  int index;  // entry * heads + the head's in the group
  int length;
};

/// What the mask warps make of an item before the consumers need it.
struct GradientsItem {
  TrianglePair masks;                  // G below, Mu above
  alignas(16) float gates[5][kChunk];  // in the order of Gate
  float a[kChunk + 1];                 // alpha_1 ... alpha_t
  int index;                           // of the group's items
  int length;
  int head;
  int64_t token;
};

/// The fp32 part of the block's shared memory.
struct GradientsSmall {
  GradientsItem items[2];
  // From the consumers to the mask warps:
  TrianglePair terms;  // dG below, dH above; then the products to sum
  float da[kChunk];    // direct gradient of a_t through the outputs
  float de[kChunk];    // of e_t = pi_t a_{t-1}
  float krS[kChunk];   // rk_j k_j . rS_j
  float krM[kChunk];
  float deta[8][kChunk];         // by the warps of warpgroups 0 and 1
  float dots[12];                // <dS,S>, <dS,M>, <dM,M> of the warps
  float a_terms[2][kChunk];      // the parts of dalpha and dpi that come through a
  float exchange[32 * 128];      // half of dk
  float row_dots[2][kChunk];     // of q and dq, k and dk at fixed norm, in the tiles so far
  float gates_ahead[5][kChunk];  // on their way in
  GradientsWork work[4];         // of the items drawn last
  uint64_t full[2];              // of the stages
  uint64_t empty[2];
  uint64_t vectors_full[2];
  uint64_t vectors_empty[2];
  uint64_t item_full[2];
  uint64_t work_full[4];
  uint64_t qk_full, qk_empty, terms_full, terms_empty;
};
template <bool kMomentum>
inline constexpr int kGradientsBytes = GradientsShared<kMomentum>::kSmall +
                                       static_cast<int>(sizeof(GradientsSmall)) + 1024;
static_assert(kGradientsBytes<true> <= 232448,
              "more shared memory than a block of an H100 can have");

}  // namespace mdn::kernels::cuda::backward_pass
