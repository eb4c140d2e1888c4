// The walk over chunks, forwards. With the state S [values, kK] before the chunk in registers:
//
//     R = (I + KK D)^-1 (V - K~ S);   O = Q~ S + QK D R;   S <- diag(A(C, 0)) S + K^T D R
//
// R is kept transposed [values, tokens], so that it is made from S and goes into S without leaving
// the registers; O has tokens as rows, with S as the other operand.
#include "mdn/kernels/cuda/kimi_delta_rule/types.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/walk_parts.cuh"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::kernels::cuda::kimi {
namespace {

struct WalkParams {
  KimiDeltaRuleProblem problem;
  Work work;
  const void* v;
  const float* initial_S;
  void* o;
  float* final_S;
};

/// kStates: leaves the states and R for the backward pass, and no outputs.
template <class T, int kK, bool kStates>
__global__ void __launch_bounds__(kWalkThreads) walk_kernel(const WalkParams p) {
  using Place = Record<kK>;
  constexpr int kRecordBytes = kStates ? Place::kStateBytes : Place::kForwardBytes;
  extern __shared__ __align__(16) unsigned char kimi_shared[];
  const WalkThread self(p.problem, p.work);
  const auto& [thread, lane, warp, block, chunks, value, has_values, state] = self;

  float S[kK / 8][4];
  load_state<kK>(S, p.initial_S ? p.initial_S + state : nullptr, value, p.problem, lane);

  const auto fetch = [&](int chunk) {
    fetch_chunk<T, kK, kRecordBytes>(kimi_shared, self, p.problem, p.work, p.v, chunk,
                                     chunk < chunks);
  };
  for (int chunk = 0; chunk < kStages - 1; ++chunk) {
    fetch(chunk);
  }
  for (int chunk = 0; chunk < chunks; ++chunk) {
    ptx::async_copy_wait_but<kStages - 2>();
    __syncthreads();
    fetch(chunk + kStages - 1);
    if (!has_values) {
      continue;
    }
    const unsigned char* const stage = kimi_shared + chunk % kStages * kStageBytes<kRecordBytes>;
    const uint32_t at = ptx::shared_address(stage);

    uint32_t S_rounded[kK / 16][4];
#pragma unroll
    for (int i = 0; i < kK / 16; ++i) {
      to_operand<T>(S_rounded[i], S, i);
    }
    // X = V - K~ S;  R = X + ((I + KK D)^-1 - I) X
    float prediction[2][4], R[2][4];
    times_tokens<T, kK>(prediction, S_rounded, at + Place::kKeys, lane);
    uint32_t words[4];
    ptx::ldmatrix_trans(words, at + kRecordBytes + lane_at<128, false>(lane, 2 * warp));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 v = ptx::unpack<T>(words[i]);
      R[i / 2][i % 2 * 2] = v.x - prediction[i / 2][i % 2 * 2];
      R[i / 2][i % 2 * 2 + 1] = v.y - prediction[i / 2][i % 2 * 2 + 1];
    }
    to_operand<T>(words, R, 0);
    times_matrix<T, true>(R, words, at + Place::kSolve, lane);
    if constexpr (kStates) {
      const int64_t tile =
          p.work.place(block.first_chunk + chunk, block.head) * p.work.value_tiles +
          value / kValueTile;
#pragma unroll
      for (int i = 0; i < kK / 16; ++i) {
        p.work.states[(tile * (kK / 16) + i) * 32 + lane] =
            make_uint4(S_rounded[i][0], S_rounded[i][1], S_rounded[i][2], S_rounded[i][3]);
      }
      to_operand<T>(words, R, 0);
      p.work.R[tile * 32 + lane] = transposed(words);
    }
    // Y = D R
    scale_tokens(R, stage + Place::kBeta, lane);
    uint32_t Y[4];
    to_operand<T>(Y, R, 0);
    if constexpr (!kStates) {
      // O = Q~ S + QK Y
      float o[2][4] = {};
#pragma unroll
      for (int i = 0; i < kK / 16; ++i) {
        uint32_t q[4];
        ptx::ldmatrix(q, at + Place::kQueries + lane_at<2 * kK, true>(lane, 2 * i));
        ptx::mma<T>(o[0], q, S_rounded[i][0], S_rounded[i][2]);
        ptx::mma<T>(o[1], q, S_rounded[i][1], S_rounded[i][3]);
      }
      ptx::ldmatrix(words, at + Place::kScores + matrix_lane_at<true>(lane));
      ptx::mma<T>(o[0], words, Y[0], Y[2]);
      ptx::mma<T>(o[1], words, Y[1], Y[3]);
      to_operand<T>(words, o, 0);
      store_rows<T>(p.o, make_uint4(words[0], words[1], words[2], words[3]), p.problem, block,
                    chunk, value, lane);
    }
    // S <- diag(A(C, 0)) S + K^T Y
    decay_state<kK>(S, stage + Place::kDecay, lane);
    add_tokens<T, kK>(S, Y, at + Place::kWrites, lane);
  }
  if constexpr (!kStates) {
    if (p.final_S != nullptr && has_values) {
      store_state<kK>(S, p.final_S + state, value, p.problem, lane);
    }
  }
}

template <bool kStates>
void launch_walk(const WalkParams& p, cudaStream_t stream) {
  with_kernel(p.problem, [&](auto type, auto keys) {
    constexpr int kK = decltype(keys)::value;
    constexpr int kRecordBytes = kStates ? Record<kK>::kStateBytes : Record<kK>::kForwardBytes;
    launch("launch of kimi_delta_rule walk",
           walk_kernel<typename decltype(type)::Type, kK, kStates>, walk_blocks(p.problem, p.work),
           kWalkThreads, kStages * kStageBytes<kRecordBytes>, stream, p);
  });
}

WalkParams walk_params(const KimiDeltaRuleProblem& problem, const KimiDeltaRuleInputs& inputs,
                       const Work& work) {
  WalkParams p{};
  p.problem = problem;
  p.work = work;
  p.v = inputs.v;
  p.initial_S = static_cast<const float*>(inputs.initial_S);
  return p;
}

}  // namespace

void walk(const KimiDeltaRuleForward& call, const Work& work, cudaStream_t stream) {
  WalkParams p = walk_params(call.problem, call.inputs, work);
  p.o = call.o;
  p.final_S = static_cast<float*>(call.final_S);
  launch_walk<false>(p, stream);
}

void walk_states(const KimiDeltaRuleProblem& problem, const KimiDeltaRuleInputs& inputs,
                 const Work& work, cudaStream_t stream) {
  launch_walk<true>(walk_params(problem, inputs, work), stream);
}

}  // namespace mdn::kernels::cuda::kimi
