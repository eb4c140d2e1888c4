// The thread's place, read anew at each call: addresses made of it are computed again where they
// are used instead of being kept in registers (or spilled) across a loop.
#pragma once

namespace mdn::kernels::cuda::ptx {

__device__ __forceinline__ int fresh_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

}  // namespace mdn::kernels::cuda::ptx
