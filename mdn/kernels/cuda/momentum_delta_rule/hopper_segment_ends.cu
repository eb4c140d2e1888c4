// Launches of the backward pass's kernel for segments.
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segment_ends.cuh"

#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_launch.h"

namespace mdn::kernels::cuda {

template <class E, int kK, int kBoxesV, bool kMomentum>
void launch_segment_ends_kernel(const backward_pass::Arguments& args, cudaStream_t stream) {
  using namespace backward_pass;
  constexpr int kBytes = ChainShared<kK, kBoxesV, kMomentum>::kBytes;
  launch("launch of segment_ends_kernel", segment_ends_kernel<E, kK, kBoxesV, kMomentum>,
         int64_t{args.sequences} * args.HV * (args.V / (64 * kBoxesV)),
         Split<kK, kBoxesV, kMomentum>::kThreads, kBytes, stream, args);
}

template <class E>
void launch_hopper_segment_ends(const backward_pass::Arguments& args, bool momentum,
                                int multiprocessors, cudaStream_t stream) {
  const int64_t tiles = (int64_t{args.sequences} - args.sequences / args.segments) * args.HV *
                        (args.V / 64);  // of blocks with work
  const bool single = args.V == 64 || tiles <= multiprocessors;
  const auto run = [&]<int kK, int kBoxesV>() {
    momentum ? launch_segment_ends_kernel<E, kK, kBoxesV, true>(args, stream)
             : launch_segment_ends_kernel<E, kK, kBoxesV, false>(args, stream);
  };
  if (args.K == 128) {
    single ? run.template operator()<128, 1>() : run.template operator()<128, 2>();
  } else {
    single ? run.template operator()<64, 1>() : run.template operator()<64, 2>();
  }
}

template void launch_hopper_segment_ends<__nv_bfloat16>(const backward_pass::Arguments&, bool, int,
                                                        cudaStream_t);
template void launch_hopper_segment_ends<__half>(const backward_pass::Arguments&, bool, int,
                                                 cudaStream_t);

}  // namespace mdn::kernels::cuda
