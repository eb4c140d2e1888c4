// How prepare and recurrence run at the same time. Prepare's blocks stay and take items (a chunk
// and query/key head) from counters, first chunks of all sequences first; the recurrence is
// launched as soon as they all run, gets the multiprocessors that they leave, and waits for a
// record where it needs it. So that it starts early, and not everywhere at the end of prepare, the
// items fall into two parts: the first is everyone's, the second is left to the helpers, the blocks
// on multiprocessors that the recurrence has no use for. A block leaves only where some other has
// said that it stays: whatever the numbering of multiprocessors, every item is taken by a block
// that runs already, and no order of launches can make the two kernels wait for each other.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"
#include "mdn/kernels/cuda/ptx/fence.cuh"

namespace mdn::kernels::cuda::hopper {

/// The words behind it.
__device__ __forceinline__ uint32_t* ready_words(Progress* progress) {
  return reinterpret_cast<uint32_t*>(progress + 1);
}

/// A chunk, as an entry of the chunk table, and a query/key head; entry -1: none.
struct Item {
  int entry;
  int key_head;
};

/// Item i is key head i % H of chunk i / (H rows) of row i / H % rows.
struct ItemOrder {
  int items;
  int shared_items;  // everyone's; at least one a block
  int helpers_from;  // number of the first multiprocessor whose blocks are helpers
  int rows;
  int chunks_a_row;
  int H;

  __device__ __forceinline__ Item item(int index) const {
    const int chunk_and_row = index / H;
    return {index < items ? chunk_and_row % rows * chunks_a_row + chunk_and_row / rows : -1,
            index % H};
  }
};

/// Whether this block's multiprocessor is one of the helpers'.
__device__ __forceinline__ bool on_helper(const ItemOrder& order) {
  uint32_t multiprocessor;
  asm("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
  return static_cast<int>(multiprocessor) >= order.helpers_from;
}

/// Sets a word in global memory to 1, behind all that this thread has done or was told of.
__device__ __forceinline__ void set_word(uint32_t* word) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(1u) : "memory");
}

/// Waits for that.
__device__ __forceinline__ void wait_word(const uint32_t* word) {
  uint32_t value;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  } while (value == 0);
}

/// Says that this thread's copies to a record, which it has waited for, are there.
__device__ __forceinline__ void publish(uint32_t* ready) {
  ptx::fence_async_global();
  set_word(ready);
}

/// Waits for a record before this thread's copies from it.
__device__ __forceinline__ void wait_ready(const uint32_t* ready) {
  wait_word(ready);
  ptx::fence_async_global();
}

}  // namespace mdn::kernels::cuda::hopper
