// cp.async: single words from global to shared memory without a register in between. A thread waits
// for its own copies only.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/ptx/descriptor.cuh"

namespace mdn::kernels::cuda::ptx {

/// Copies 4 bytes.
__device__ __forceinline__ void async_copy_word(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)),
               "l"(reinterpret_cast<uint64_t>(global))
               : "memory");
}

/// Waits for all copies of this thread.
__device__ __forceinline__ void async_copy_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace mdn::kernels::cuda::ptx
