// Launches of the kernels of the Hopper backward pass, for one element type.
#pragma once

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_recurrences.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_gradients.cuh"

namespace mdn::kernels::cuda {

template <class E, int kK, int kBoxesV, bool kMomentum>
void launch_recurrences(const backward_pass::Arguments& args, cudaStream_t stream) {
  using namespace backward_pass;
  using States = StatesShared<kK, kBoxesV, kMomentum>;
  using Chain = ChainShared<kK, kBoxesV, kMomentum>;
  static_assert(States::kBytes <= 232448 && Chain::kBytes <= 232448);
  constexpr int kBytes = States::kBytes > Chain::kBytes ? States::kBytes : Chain::kBytes;
  const int64_t blocks = int64_t{args.sequences} * args.heads * (args.V / (64 * kBoxesV));
  launch("launch of recurrences_kernel", recurrences_kernel<E, kK, kBoxesV, kMomentum>, 2 * blocks,
         Split<kK, kBoxesV, kMomentum>::kThreads, kBytes, stream, args);
}

template <class E, bool kMomentum>
void launch_group(const backward_pass::Arguments& args, int multiprocessors, cudaStream_t stream) {
  using namespace backward_pass;
  if (args.K == 256) {
    launch_recurrences<E, 256, 1, kMomentum>(args, stream);
  } else if (args.K == 128 && args.V == 64) {
    launch_recurrences<E, 128, 1, kMomentum>(args, stream);
  } else if (args.K == 128) {
    launch_recurrences<E, 128, 2, kMomentum>(args, stream);
  } else if (args.V == 64) {
    launch_recurrences<E, 64, 1, kMomentum>(args, stream);
  } else {
    launch_recurrences<E, 64, 2, kMomentum>(args, stream);
  }
  const int64_t items = args.entries * args.heads;
  launch("launch of gradients_kernel",
         args.partial ? gradients_kernel<E, float, kMomentum> : gradients_kernel<E, E, kMomentum>,
         items < multiprocessors ? items : multiprocessors, kGradientThreads,
         kGradientsBytes<kMomentum>, stream, args);
}

template <class E>
void launch_hopper_backward(const backward_pass::Arguments& args, bool momentum,
                            int multiprocessors, cudaStream_t stream) {
  momentum ? launch_group<E, true>(args, multiprocessors, stream)
           : launch_group<E, false>(args, multiprocessors, stream);
}

template <class E>
void launch_hopper_finish(const MomentumDeltaRuleBackward& call,
                          const backward_pass::Arguments& args, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const int64_t rows = problem.B * problem.T * problem.H;
  const auto finish = [&]<class From>(const From* from, const void* x, void* d) {
    launch("launch of finish_rows_kernel", backward_pass::finish_rows_kernel<E, From>,
           (rows + 7) / 8, 256, 0, stream, from,
           static_cast<const E*>(problem.l2norm ? x : nullptr), static_cast<E*>(d), rows, args.K,
           args.group);
  };
  if (args.partial) {
    finish(static_cast<const float*>(args.d_q), call.inputs.q, call.d_q);
    finish(static_cast<const float*>(args.d_k), call.inputs.k, call.d_k);
  } else if (problem.l2norm) {
    finish(static_cast<const E*>(args.d_q), call.inputs.q, call.d_q);
    finish(static_cast<const E*>(args.d_k), call.inputs.k, call.d_k);
  }
}

}  // namespace mdn::kernels::cuda
