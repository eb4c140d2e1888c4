#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_launch.cuh"

namespace mdn::kernels::cuda {

template void launch_hopper_backward<__half>(const backward_pass::Arguments&,
                                             const MomentumDeltaRuleInputs&, bool, int,
                                             cudaStream_t);
template void launch_hopper_finish<__half>(const MomentumDeltaRuleBackward&,
                                           const backward_pass::Arguments&, cudaStream_t);

}  // namespace mdn::kernels::cuda
