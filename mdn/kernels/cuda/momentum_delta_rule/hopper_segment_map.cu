// Launches of the maps of segments.
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segment_map.cuh"

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"

namespace mdn::kernels::cuda {
namespace {

template <class T>
void launch_type(const MomentumDeltaRuleForward& call, const HopperForwardConfig& config,
                 const HopperForwardArguments& arguments, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const hopper::SegmentMapParams params{arguments.table.chunks,
                                        arguments.table.begin,
                                        arguments.records,
                                        arguments.progress,
                                        static_cast<const float*>(call.inputs.initial_S),
                                        static_cast<const float*>(call.inputs.initial_M),
                                        arguments.segments,
                                        config.segments,
                                        static_cast<int>(problem.HV),
                                        static_cast<int>(problem.HV / problem.H),
                                        static_cast<int>(problem.V)};
  const auto run = [&]<int K, bool kMomentum>() {
    using Traits = hopper::SegmentMapTraits<T, K, kMomentum>;
    const int64_t parts = (problem.V / 64 + Traits::X / 64 + 1) / 2;
    launch_early("launch of segment_map", hopper::segment_map<Traits>,
                 problem.N * config.segments * problem.HV * parts, Traits::kThreads,
                 sizeof(hopper::SegmentMapShared<Traits>), stream, arguments.k, arguments.v,
                 params);
  };
  if (problem.K == 128) {
    problem.momentum ? run.template operator()<128, true>() : run.template operator()<128, false>();
  } else {
    problem.momentum ? run.template operator()<64, true>() : run.template operator()<64, false>();
  }
}

}  // namespace

void launch_hopper_segment_map(const MomentumDeltaRuleForward& call,
                               const HopperForwardConfig& config,
                               const HopperForwardArguments& arguments, cudaStream_t stream) {
  call.problem.dtype == DType::kFloat16
      ? launch_type<__half>(call, config, arguments, stream)
      : launch_type<__nv_bfloat16>(call, config, arguments, stream);
}

}  // namespace mdn::kernels::cuda
