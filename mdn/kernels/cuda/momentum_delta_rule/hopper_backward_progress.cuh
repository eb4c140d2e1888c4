// How the kernels of the Hopper backward pass run at the same time. The gradients kernel is
// launched as soon as all blocks of the recurrences run, gets the multiprocessors that they leave,
// draws items (a chunk and value head) from a counter, and waits for an item's states and their
// gradients where it needs them. No block of the recurrences waits for it, so nothing can wait for
// ever.
//
// What a consumer warpgroup of a recurrence makes leaves by a thread of its own, which waits for
// the copies to global memory and counts them in a word of the item. Per chunk the warpgroup
// arrives at `full` when its boxes are in shared memory, and so is all that it wrote for the chunk
// before: that thread then copies, arrives at `empty` when the boxes may be written again, and
// counts the chunk before when its copies have ended.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"
#include "mdn/kernels/cuda/ptx/thread.cuh"

namespace mdn::kernels::cuda::backward_pass {

/// How many warpgroups have a part in an item, of both recurrences.
__device__ __forceinline__ uint32_t parts_of_item(const Arguments& args) {
  return static_cast<uint32_t>(2 * (args.V / 64) * (args.K == 256 ? 2 : 1));
}

/// Says that one part is in global memory: all that this thread has waited for or was told of.
__device__ __forceinline__ void add_part(uint32_t* ready) {
  ptx::fence_async_global();
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(ready), "r"(1u) : "memory");
}

/// Whether all parts are there; then this thread's copies may read them.
__device__ __forceinline__ bool has_parts(const uint32_t* ready, uint32_t parts) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(ready) : "memory");
  if (value != parts) {
    return false;
  }
  ptx::fence_async_global();
  return true;
}

/// Between one consumer warpgroup and the thread that sends what it makes.
struct Outgoing {
  uint64_t full;
  uint64_t empty;

  __device__ __forceinline__ void init() {
    ptx::mbarrier_init(&full, 128);
    ptx::mbarrier_init(&empty, 1);
  }
};

/// Of this thread's consumer warpgroup; computed anew where it is used.
__device__ __forceinline__ Outgoing& outgoing_of(uint8_t* all) {
  return reinterpret_cast<Outgoing*>(all)[ptx::fresh_thread_index() / 128];
}

/// One thread a warpgroup: sends its chunks, chunk table entries first .. last - 1, in the order in
/// which they are made, dS and dM of the chain, or S, M and R. `states`: its boxes of S, then of M;
/// R null: not this warpgroup's. v_box is of the head's, half of K = 256's.
template <int kK, int kBoxesV, bool kMomentum, bool kChain>
__device__ __forceinline__ void send_chunks(const Arguments& args, Outgoing& outgoing,
                                            const uint8_t* states, const uint8_t* R, int first,
                                            int last, int head, int v_box, int half) {
  using Sp = Split<kK, kBoxesV, kMomentum>;
  constexpr int kBoxes = Sp::kWarpgroupBoxesK;
  const int chunks = last - first;
  const int step = kChain ? -args.heads : args.heads;
  // An item takes more than 16 KB of the workspace: 32 bits count them.
  int item = (kChain ? last - 1 : first) * args.heads + (head - args.head);
  for (int i = 0; chunks > 0 && i <= chunks; ++i, item += step) {
    ptx::mbarrier_wait(&outgoing.full, i & 1);
    if (!kChain && i > 0 && R != nullptr) {
      const int64_t at = int64_t{item - step} * (args.V / 64) + v_box;
      ptx::bulk_store(args.R + at * kBox, R, kBox);
      ptx::store_commit();
    }
    if (i < chunks) {
      const int64_t at = (int64_t{item} * (args.V / 64) + v_box) * Sp::kBoxesK + half * kBoxes;
      store_boxes<kBoxes>((kChain ? args.dS : args.S) + at * kBox, states);
      if constexpr (kMomentum) {
        store_boxes<kBoxes>((kChain ? args.dM : args.M) + at * kBox, states + kBoxes * kBox);
      }
      ptx::store_commit();
      ptx::store_wait_read<0>();
      ptx::mbarrier_arrive(&outgoing.empty);
      ptx::store_wait<1>();  // all but this chunk's
    } else {
      ptx::store_wait<0>();
    }
    if (i > 0) {
      add_part(args.ready + (item - step));
    }
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
