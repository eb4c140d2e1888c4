// cp.async: from global to shared memory without a register in between. A thread waits for its own
// copies only.
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

/// Copies 8 bytes, by way of L1, or 16, past it, to shared address `shared`.
template <int kBytes>
__device__ __forceinline__ void async_copy_run(uint32_t shared, const void* global) {
  static_assert(kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 8) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared),
                 "l"(reinterpret_cast<uint64_t>(global))
                 : "memory");
  } else {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared),
                 "l"(reinterpret_cast<uint64_t>(global))
                 : "memory");
  }
}

/// Copies 16 bytes to shared address `shared`, or writes zeros there and reads nothing.
__device__ __forceinline__ void async_copy_unit(uint32_t shared, const void* global,
                                                bool zeros = false) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(reinterpret_cast<uint64_t>(global)), "r"(zeros ? 0 : 16)
               : "memory");
}

/// Makes one group of this thread's copies since the last call.
__device__ __forceinline__ void async_copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits for this thread's groups but for the `kPending` newest.
template <int kPending>
__device__ __forceinline__ void async_copy_wait_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Waits for all copies of this thread.
__device__ __forceinline__ void async_copy_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace mdn::kernels::cuda::ptx
