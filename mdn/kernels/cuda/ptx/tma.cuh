// The copy engine: tiles by tensor map (cp.async.bulk.tensor) and plain runs of bytes
// (cp.async.bulk). Loads complete on an mbarrier whose phase was told the bytes to expect; elements
// outside the tensor arrive as zeros and count as bytes. Stores are grouped like cp.async. One
// thread issues. Shared addresses: 128-byte aligned (1024 with the 128-byte swizzle); plain copies
// need 16-byte aligned addresses and sizes.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/ptx/descriptor.cuh"

namespace mdn::kernels::cuda::ptx {

/// Loads the box at (x, y, z): x counts the contiguous index. `map` is a __grid_constant__
/// argument.
__device__ __forceinline__ void tma_load(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                         int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4, %5}], [%2];" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

/// Brings the box to L2 alone.
__device__ __forceinline__ void tma_prefetch(const CUtensorMap* map, int x, int y, int z) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global [%0, {%1, %2, %3}];" ::"l"(
                   reinterpret_cast<uint64_t>(map)),
               "r"(x), "r"(y), "r"(z)
               : "memory");
}

/// Plain copies of `bytes`.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   reinterpret_cast<uint64_t>(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

/// Closes a group of stores of this thread.
__device__ __forceinline__ void store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most `kGroups` of this thread's groups still read shared memory.
template <int kGroups>
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}

/// Waits until at most `kGroups` of this thread's groups are not yet visible in global memory.
template <int kGroups>
__device__ __forceinline__ void store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kGroups) : "memory");
}

}  // namespace mdn::kernels::cuda::ptx
