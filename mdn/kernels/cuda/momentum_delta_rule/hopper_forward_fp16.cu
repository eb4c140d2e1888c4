#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.cuh"

namespace mdn::kernels::cuda {

template void launch_hopper_prepare<__half>(const MomentumDeltaRuleForward&,
                                            const HopperForwardConfig&,
                                            const HopperForwardArguments&, cudaStream_t);
template void launch_hopper_recurrence<__half>(const MomentumDeltaRuleForward&,
                                               const HopperForwardConfig&,
                                               const HopperForwardArguments&, cudaStream_t);

}  // namespace mdn::kernels::cuda
