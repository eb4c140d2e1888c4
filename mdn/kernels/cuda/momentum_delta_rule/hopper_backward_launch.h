// Between the host side of the Hopper backward pass and its kernels, which are compiled one element
// type a file. For .cu files.
#pragma once

#include <cuda_runtime_api.h>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"
#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cuda {

/// All kernels for the value heads in work, E = __nv_bfloat16 or __half.
template <class E>
void launch_hopper_backward(const backward_pass::Arguments& args,
                            const MomentumDeltaRuleInputs& inputs, bool momentum,
                            int multiprocessors, cudaStream_t stream);

/// Before them, where sequences are cut into segments (args.segments): args.d_initial_S and _M
/// [N segments, HV, V, K] of segment i get the gradients of the states that segment i + 1 starts
/// with, were those that it ends with 0; for the last one args.d_final_S and _M [N, HV, V, K].
template <class E>
void launch_hopper_segment_ends(const backward_pass::Arguments& args, bool momentum,
                                int multiprocessors, cudaStream_t stream);

/// What is left to do for dq and dk with shared heads, when all heads are done.
template <class E>
void launch_hopper_finish(const MomentumDeltaRuleBackward& call,
                          const backward_pass::Arguments& args, cudaStream_t stream);

}  // namespace mdn::kernels::cuda
