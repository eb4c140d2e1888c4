// Launches of the two kernels of the Hopper forward pass, for one element type.
#pragma once

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_recurrence_split.cuh"

namespace mdn::kernels::cuda {

inline hopper::ItemOrder item_order(const MomentumDeltaRuleProblem& problem,
                                    const HopperForwardConfig& config) {
  const auto rows = static_cast<int>(problem.cu_seqlens == nullptr ? problem.N : 1);
  const auto H = static_cast<int>(problem.H);
  const auto items = static_cast<int>(config.prepare_items);
  return {items, static_cast<int>(config.shared_items), config.helpers_from,
          rows,  rows == 0 ? 0 : items / (H * rows),    H};
}

template <class T>
void launch_hopper_prepare(const MomentumDeltaRuleForward& call, const HopperForwardConfig& config,
                           const HopperForwardArguments& arguments, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const MomentumDeltaRuleInputs& in = call.inputs;
  const hopper::PrepareParams params{arguments.table.chunks,
                                     static_cast<const float*>(in.alpha),
                                     static_cast<const float*>(in.mu),
                                     static_cast<const float*>(in.eta),
                                     static_cast<const float*>(in.beta),
                                     static_cast<const float*>(in.pi),
                                     arguments.records,
                                     arguments.progress,
                                     item_order(problem, config),
                                     static_cast<int>(problem.HV / problem.H),
                                     static_cast<float>(problem.scale),
                                     problem.l2norm};
  const auto run = [&]<int K>() {
    launch_early("launch of prepare",
                 params.group == 1 ? hopper::prepare<T, K, false> : hopper::prepare<T, K, true>,
                 config.prepare_blocks, hopper::kPrepareThreads, sizeof(hopper::PrepareShared<K>),
                 stream, arguments.q, arguments.k, params);
  };
  switch (problem.K) {
    case 64:
      return run.template operator()<64>();
    case 128:
      return run.template operator()<128>();
    default:
      return run.template operator()<256>();
  }
}

template <class T>
void launch_hopper_recurrence(const MomentumDeltaRuleForward& call,
                              const HopperForwardConfig& config,
                              const HopperForwardArguments& arguments, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const bool cut = config.segments > 1;  // then segments start with what the maps gave
  const hopper::RecurrenceParams params{
      arguments.table.chunks,
      arguments.table.begin,
      arguments.records,
      arguments.progress,
      cut ? arguments.segments.start_S : static_cast<const float*>(call.inputs.initial_S),
      cut ? arguments.segments.start_M : static_cast<const float*>(call.inputs.initial_M),
      static_cast<float*>(call.final_S),
      static_cast<float*>(call.final_M),
      call.o,
      static_cast<int>(problem.HV),
      static_cast<int>(problem.HV / problem.H),
      static_cast<int>(problem.V),
      config.segments,
      arguments.segments.unknown,
      config.shared_walks ? static_cast<int>(tile_walks(problem) / config.value_tiles) : 0,
      static_cast<int>((problem.T + kChunk - 1) / kChunk),
      arguments.handed};
  const auto run = [&](auto* kernel, int threads, size_t shared) {
    if (config.prepare_blocks == 0 || cut) {  // no kernel that it may overlap with
      launch("launch of recurrence", kernel, config.recurrence_blocks, threads, shared, stream,
             arguments.q, arguments.k, arguments.v, params);
      return;
    }
    launch_early("launch of recurrence", kernel, config.recurrence_blocks, threads, shared, stream,
                 arguments.q, arguments.k, arguments.v, params);
  };
  const auto run_tiles = [&]<int K, int kTiles, bool kMomentum>() {
    using Traits = hopper::RecurrenceTraits<T, K, kTiles, kMomentum>;
    run(hopper::recurrence<Traits>, Traits::kThreads, sizeof(hopper::RecurrenceShared<Traits>));
  };
  const auto run_shape = [&]<bool kMomentum>() {
    if (config.split) {
      using Traits = hopper::SplitTraits<T, kMomentum>;
      run(hopper::recurrence_split<Traits>, Traits::kThreads, sizeof(hopper::SplitShared<Traits>));
    } else if (problem.K == 128) {
      config.value_tiles == 2 ? run_tiles.template operator()<128, 2, kMomentum>()
                              : run_tiles.template operator()<128, 1, kMomentum>();
    } else {
      config.value_tiles == 2 ? run_tiles.template operator()<64, 2, kMomentum>()
                              : run_tiles.template operator()<64, 1, kMomentum>();
    }
  };
  problem.momentum ? run_shape.template operator()<true>() : run_shape.template operator()<false>();
}

}  // namespace mdn::kernels::cuda
