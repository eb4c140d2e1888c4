// Launches of the kernels of the Hopper backward pass, for one element type.
#pragma once

#include <algorithm>

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_recurrences.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_finish_rows.cuh"
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
  launch_early("launch of recurrences_kernel", recurrences_kernel<E, kK, kBoxesV, kMomentum>,
               2 * blocks, Split<kK, kBoxesV, kMomentum>::kThreads, kBytes, stream, args);
}

template <class E, bool kMomentum>
void launch_group(backward_pass::Arguments args, int multiprocessors, cudaStream_t stream) {
  using namespace backward_pass;
  const int tiles = args.V / (args.K == 256 || args.V == 64 ? 64 : 128);  // blocks of a pair
  const int pairs = args.sequences / args.segments * args.heads;
  args.early_pairs =
      args.segments > 1 ? pairs : std::clamp(multiprocessors / tiles - pairs, 0, pairs);
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
  launch_early(
      "launch of gradients_kernel",
      args.partial ? gradients_kernel<E, float, kMomentum> : gradients_kernel<E, E, kMomentum>,
      items < multiprocessors ? items : multiprocessors, kGradientThreads,
      kGradientsBytes<kMomentum>, stream, args);
}

template <class E>
void launch_hopper_backward(const backward_pass::Arguments& args,
                            const MomentumDeltaRuleInputs& inputs, bool momentum,
                            int multiprocessors, cudaStream_t stream) {
  momentum ? launch_group<E, true>(args, multiprocessors, stream)
           : launch_group<E, false>(args, multiprocessors, stream);
  if (args.l2norm && !args.partial && args.K > 64) {
    launch_early("launch of finish_tiles_kernel", backward_pass::finish_tiles_kernel<E>,
                 args.entries * args.heads, backward_pass::kFinishThreads, 0, stream, args,
                 static_cast<const E*>(inputs.q), static_cast<const E*>(inputs.k));
  }
}

template <class E>
void launch_hopper_finish(const MomentumDeltaRuleBackward& call,
                          const backward_pass::Arguments& args, cudaStream_t stream) {
  if (!args.partial) {
    return;
  }
  const MomentumDeltaRuleProblem& problem = call.problem;
  const int64_t rows = problem.B * problem.T * problem.H;
  const auto rows_of = [&](const void* from, const void* raw, void* d) {
    return backward_pass::UnfinishedRows<E>{static_cast<const float*>(from),
                                            static_cast<const E*>(problem.l2norm ? raw : nullptr),
                                            static_cast<E*>(d)};
  };
  launch_early("launch of finish_rows_kernel", backward_pass::finish_rows_kernel<E>,
               2 * ((rows + 7) / 8), backward_pass::kFinishThreads, 0, stream,
               rows_of(args.d_q, call.inputs.q, call.d_q),
               rows_of(args.d_k, call.inputs.k, call.d_k), rows, args.K, args.group);
}

}  // namespace mdn::kernels::cuda
