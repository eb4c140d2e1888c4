// The two recurrences of the backward pass as one grid: the chain's blocks first, since they take
// longer, then those of the states. Neither needs the other. A block has its consumer warpgroups
// and one more: its first warp loads, each of the next sends what one consumer warpgroup makes
// (hopper_backward_progress.cuh).
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_chain.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_states.cuh"

namespace mdn::kernels::cuda::backward_pass {

/// The consumer warpgroup that this warp of the last warpgroup sends for; -1: none.
template <class Cut>
__device__ __forceinline__ int sender_of() {
  const int warp = static_cast<int>(threadIdx.x) % 128 / 32;
  return warp >= 1 && warp <= Cut::kConsumers ? warp - 1 : -1;
}

/// One thread: barriers of kCount stages, full and behind them empty, and of what leaves.
template <class Cut, int kCount>
__device__ __forceinline__ void init_barriers(uint64_t* full, Outgoing* outgoing) {
  for (int i = 0; i < kCount; ++i) {
    ptx::mbarrier_init(full + i, 1);
    ptx::mbarrier_init(full + kCount + i, 128 * Cut::kConsumers);
  }
  for (int i = 0; i < Cut::kConsumers; ++i) {
    outgoing[i].init();
  }
  ptx::mbarrier_init_fence();
}

/// The chain over a segment (or sequence) with outputs.
template <int kK>
__device__ __forceinline__ ChainWork chain_work(const Arguments& args, int state, int head) {
  const Walk walk = find_walk<true>(args, state, head);
  const int64_t size = int64_t{args.V} * kK;
  const int64_t from = (int64_t{state} * args.HV + head) * size;
  const int64_t to = (int64_t{walk.sequence} * args.HV + head) * size;
  const auto given = [&](const float* x) { return x == nullptr ? nullptr : x + from; };
  const auto wanted = [&](float* x) { return x == nullptr || !walk.ends ? nullptr : x + to; };
  return {walk.first,
          walk.last,
          {given(args.d_final_S), given(args.d_final_M)},
          {wanted(args.d_initial_S), wanted(args.d_initial_M)}};
}

template <class E, int kK, int kBoxesV, bool kMomentum, bool kWrites, class Work>
__device__ __forceinline__ void run_chain(const Arguments& args, uint8_t* shared, const Work& work,
                                          int head, int tile) {
  using Sp = Split<kK, kBoxesV, kMomentum>;
  using L = ChainShared<kK, kBoxesV, kMomentum>;
  const ChainBarriers<kK, kBoxesV, kMomentum> barriers{
      reinterpret_cast<uint64_t*>(shared + L::kBarriers)};
  auto* outgoing = reinterpret_cast<Outgoing*>(shared + L::kOutgoing);
  if (threadIdx.x == 0) {
    init_barriers<Sp, ChainBarriers<kK, kBoxesV, kMomentum>::kEmpty>(barriers.first, outgoing);
  }
  __syncthreads();
  if (threadIdx.x / 128 == Sp::kConsumers) {
    if constexpr (Sp::kConsumers == 2) {
      ptx::registers_decrease<24>();
    }
    const int warpgroup = sender_of<Sp>();
    if (!ptx::elect_one()) {
      return;
    }
    if (threadIdx.x % 128 < 32) {
      chain_producer<E, kK, kBoxesV, kMomentum>(args, shared, barriers, work, head, tile);
    } else if (kWrites && warpgroup >= 0) {
      send_chunks<kK, kBoxesV, kMomentum, true>(
          args, outgoing[warpgroup],
          shared + L::kStates + warpgroup * Sp::kStates * Sp::kWarpgroupBoxesK * kBox, nullptr,
          work.first(), work.last(), head, tile * Sp::kBoxesV + (Sp::kHalves == 2 ? 0 : warpgroup),
          Sp::kHalves == 2 ? warpgroup : 0);
    }
  } else {
    if constexpr (Sp::kConsumers == 2) {
      ptx::registers_increase<240>();
    }
    chain_consumer<E, kK, kBoxesV, kMomentum, kWrites>(args, shared, barriers, work, head, tile);
  }
}

template <class E, int kK, int kBoxesV, bool kMomentum>
__device__ __forceinline__ void run_states(const Arguments& args, uint8_t* shared, int state,
                                           int head, int tile) {
  using Sp = Split<kK, kBoxesV, kMomentum>;
  using L = StatesShared<kK, kBoxesV, kMomentum>;
  auto* full = reinterpret_cast<uint64_t*>(shared + L::kBarriers);
  uint64_t* empty = full + L::kStages;
  __shared__ Walk walk;  // here it takes no registers
  auto* outgoing = reinterpret_cast<Outgoing*>(shared + L::kOutgoing);
  if (threadIdx.x == 0) {
    walk = find_walk<false>(args, state, head);
    init_barriers<Sp, L::kStages>(full, outgoing);
  }
  __syncthreads();
  if (threadIdx.x / 128 == Sp::kConsumers) {
    if constexpr (Sp::kConsumers == 2) {
      ptx::registers_decrease<24>();
    }
    const int warpgroup = sender_of<Sp>();
    if (!ptx::elect_one()) {
      return;
    }
    if (threadIdx.x % 128 < 32) {
      states_producer<E, kK, kBoxesV, kMomentum>(args, shared, full, empty, walk, head, tile);
    } else if (warpgroup >= 0) {
      const int box_v = Sp::kHalves == 2 ? 0 : warpgroup;
      const int half = Sp::kHalves == 2 ? warpgroup : 0;
      send_chunks<kK, kBoxesV, kMomentum, false>(
          args, outgoing[warpgroup],
          shared + L::kStates + warpgroup * Sp::kStates * Sp::kWarpgroupBoxesK * kBox,
          half == 0 ? shared + L::kR + box_v * kBox : nullptr, walk.first, walk.last, head,
          tile * Sp::kBoxesV + box_v, half);
    }
  } else {
    if constexpr (Sp::kConsumers == 2) {
      ptx::registers_increase<240>();
    }
    states_consumer<E, kK, kBoxesV, kMomentum>(args, shared, full, empty, walk, state, head, tile);
  }
}

template <class E, int kK, int kBoxesV, bool kMomentum>
__global__ void __launch_bounds__(Split<kK, kBoxesV, kMomentum>::kThreads, 1)
    recurrences_kernel(const __grid_constant__ Arguments args) {
  extern __shared__ uint8_t memory[];
  uint8_t* shared = memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
  ptx::wait_for_dependencies();  // launched early: on the chunk table, on the last group
  ptx::launch_dependents();
  const int blocks = static_cast<int>(gridDim.x) / 2;  // of either
  const int block = static_cast<int>(blockIdx.x) % blocks;
  const int tiles = args.V / (64 * kBoxesV);
  const int tile = block % tiles;
  const int head = args.head + block / tiles % args.heads;
  const int state = block / tiles / args.heads;
  if (static_cast<int>(blockIdx.x) < blocks) {
    if constexpr (kK == 256) {
      const WholeChainWork work{args, state, head, int64_t{args.V} * kK};
      run_chain<E, kK, kBoxesV, kMomentum, true>(args, shared, work, head, tile);
    } else {
      __shared__ ChainWork work;  // here it takes no registers
      if (threadIdx.x == 0) {
        work = chain_work<kK>(args, state, head);
      }
      run_chain<E, kK, kBoxesV, kMomentum, true>(args, shared, work, head, tile);
    }
  } else {
    run_states<E, kK, kBoxesV, kMomentum>(args, shared, state, head, tile);
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
