// The walk over chunks, backwards. With the gradient dS [values, kK] of the state after the chunk
// in registers, all [values, tokens] transposed as in the walk forwards:
//
//     dY = QK^T dO + K^ dS;   dR = (I + KK^T D)^-1 dY;   dV = D dR
//     dS <- diag(A(C, 0)) dS + Q~^T dO - K~^T dV
#include "mdn/kernels/cuda/kimi_delta_rule/types.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/walk_parts.cuh"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda::kimi {
namespace {

struct WalkBackParams {
  KimiDeltaRuleProblem problem;
  Work work;
  const void* d_o;
  const float* d_final_S;
  void* d_v;
  float* d_initial_S;
};

constexpr uint32_t kSigns = 0x80008000u;  // of two 16-bit numbers

template <class T, int kK>
__global__ void __launch_bounds__(kWalkThreads) walk_back_kernel(const WalkBackParams p) {
  using Place = Record<kK>;
  constexpr int kRecordBytes = Place::kBackwardBytes;
  extern __shared__ __align__(16) unsigned char kimi_shared[];
  const WalkThread self(p.problem, p.work);
  const auto& [thread, lane, warp, block, chunks, value, has_values, state] = self;

  float dS[kK / 8][4];
  load_state<kK>(dS, p.d_final_S ? p.d_final_S + state : nullptr, value, p.problem, lane);

  const auto fetch = [&](int chunk) {
    fetch_chunk<T, kK, kRecordBytes>(kimi_shared, self, p.problem, p.work, p.d_o, chunk,
                                     chunk >= 0);
  };
  for (int i = 1; i < kStages; ++i) {
    fetch(chunks - i);
  }
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    ptx::async_copy_wait_but<kStages - 2>();
    __syncthreads();
    fetch(chunk - kStages + 1);
    if (!has_values) {
      continue;
    }
    const unsigned char* const stage = kimi_shared + chunk % kStages * kStageBytes<kRecordBytes>;
    const uint32_t at = ptx::shared_address(stage);
    const int64_t tile = p.work.place(block.first_chunk + chunk, block.head) * p.work.value_tiles +
                         value / kValueTile;

    uint32_t dS_rounded[kK / 16][4];
#pragma unroll
    for (int i = 0; i < kK / 16; ++i) {
      to_operand<T>(dS_rounded[i], dS, i);
      p.work.d_states[(tile * (kK / 16) + i) * 32 + lane] =
          make_uint4(dS_rounded[i][0], dS_rounded[i][1], dS_rounded[i][2], dS_rounded[i][3]);
    }
    // dY = QK^T dO + K^ dS;  dR = dY + ((I + D KK)^-1 - I)^T dY
    float dR[2][4];
    uint32_t d_o[4], words[4];
    times_tokens<T, kK>(dR, dS_rounded, at + Place::kWrites, lane);
    ptx::ldmatrix_trans(d_o, at + kRecordBytes + lane_at<128, false>(lane, 2 * warp));
    times_matrix<T, false>(dR, d_o, at + Place::kScores, lane);
    to_operand<T>(words, dR, 0);
    times_matrix<T, false>(dR, words, at + Place::kSolveBack, lane);
    to_operand<T>(words, dR, 0);
    p.work.d_R[tile * 32 + lane] = transposed(words);
    // dV = D dR
    scale_tokens(dR, stage + Place::kBeta, lane);
    to_operand<T>(words, dR, 0);
    store_rows<T>(p.d_v, transposed(words), p.problem, block, chunk, value, lane);
    // dS <- diag(A(C, 0)) dS + Q~^T dO - K~^T dV
    decay_state<kK>(dS, stage + Place::kDecay, lane);
    add_tokens<T, kK>(dS, d_o, at + Place::kQueries, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] ^= kSigns;
    }
    add_tokens<T, kK>(dS, words, at + Place::kKeys, lane);
  }
  if (p.d_initial_S != nullptr && has_values) {
    store_state<kK>(dS, p.d_initial_S + state, value, p.problem, lane);
  }
}

}  // namespace

void walk_back(const KimiDeltaRuleBackward& call, const Work& work, cudaStream_t stream) {
  WalkBackParams p{};
  p.problem = call.problem;
  p.work = work;
  p.d_o = call.d_o;
  p.d_final_S = static_cast<const float*>(call.d_final_S);
  p.d_v = call.d_v;
  p.d_initial_S = static_cast<float*>(call.d_initial_S);
  with_kernel(p.problem, [&](auto type, auto keys) {
    constexpr int kK = decltype(keys)::value;
    launch("launch of kimi_delta_rule walk_back",
           walk_back_kernel<typename decltype(type)::Type, kK>, walk_blocks(p.problem, p.work),
           kWalkThreads, kStages * kStageBytes<Record<kK>::kBackwardBytes>, stream, p);
  });
}

}  // namespace mdn::kernels::cuda::kimi
