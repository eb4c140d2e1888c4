// setmaxnreg: moves registers between the warpgroups of a block. Every warp of a warpgroup executes
// it; the kernel needs __launch_bounds__(threads, 1), and the sum over warpgroups must fit the
// file.
#pragma once

namespace mdn::kernels::cuda::ptx {

template <int kRegisters>
__device__ __forceinline__ void registers_increase() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void registers_decrease() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace mdn::kernels::cuda::ptx
