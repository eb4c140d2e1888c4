// Where sequences are cut into segments (hopper_segments.h), the chain needs the gradients of the
// states that each segment ends with. What a segment does to them is affine, dX_start = A^T dX_end
// + b, with the A of the forward pass. This kernel makes b: the chain over a segment from dX_end =
// 0 (the last one: from the given gradients) without outputs. launch_segment_ends combines them.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_recurrences.cuh"

namespace mdn::kernels::cuda::backward_pass {

template <class E, int kK, int kBoxesV, bool kMomentum>
__global__ void __launch_bounds__(Split<kK, kBoxesV, kMomentum>::kThreads, 1)
    segment_ends_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ uint8_t memory[];
  uint8_t* shared = memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
  const int block = static_cast<int>(blockIdx.x);
  const int tiles = args.V / (64 * kBoxesV);
  const int tile = block % tiles;
  const int head = block / tiles % args.HV;
  const int state = block / tiles / args.HV;
  const int sequence = state / args.segments;
  const int segment = state % args.segments;
  if (segment == 0) {  // no segment ends where it starts
    return;
  }
  const int begin = args.begin[sequence];
  const int chunks = args.begin[sequence + 1] - begin;
  const int64_t size = int64_t{args.V} * kK;
  const int64_t from = (int64_t{sequence} * args.HV + head) * size;
  const int64_t to = (int64_t{state - 1} * args.HV + head) * size;
  const auto given = [&](const float* x) {
    return x == nullptr || segment < args.segments - 1 ? nullptr : x + from;
  };
  __shared__ ChainWork work;
  if (threadIdx.x == 0) {
    work = {begin + segment_begin(chunks, segment, args.segments),
            begin + segment_begin(chunks, segment + 1, args.segments),
            {given(args.d_final_S), given(args.d_final_M)},
            {args.d_initial_S + to, kMomentum ? args.d_initial_M + to : nullptr}};
  }
  run_chain<E, kK, kBoxesV, kMomentum, false>(args, shared, work, head, tile);
}

}  // namespace mdn::kernels::cuda::backward_pass
