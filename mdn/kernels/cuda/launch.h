// The one way kernels are launched: opts in to large shared memory where it is needed, and throws
// in CUDA's words, with the kernel's name, when the launch is refused. For .cu files.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/device.h"

namespace mdn::kernels::cuda {

inline constexpr size_t kSharedMemoryWithoutOptIn = 48 << 10;

/// Queues kernel<<<blocks, threads, shared, stream>>>(args...). `name` is "launch of <kernel>".
/// No block, no launch. Faults inside the kernel surface at the next synchronisation.
template <typename... Params, typename... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads, size_t shared,
            cudaStream_t stream, Args&&... args) {
  if (blocks == 0) {
    return;
  }
  if (blocks > INT32_MAX) {
    throw_cuda_error(cudaErrorInvalidConfiguration, name, __FILE__, __LINE__);
  }
  if (shared > kSharedMemoryWithoutOptIn) {
    const cudaError_t status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (status != cudaSuccess) {
      throw_cuda_error(status, name, __FILE__, __LINE__);
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, Params(args)...);
  if (status != cudaSuccess) {
    throw_cuda_error(status, name, __FILE__, __LINE__);
  }
}

/// From here on the next kernel of the stream may start, if it was queued by launch_early().
__device__ inline void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the kernel before is done and what it wrote visible.
__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// As launch(), but blocks may start while the kernel before still runs: the kernel itself waits
/// (wait_for_previous, or ptx::wait_for_dependencies) before it reads what that one writes, or
/// writes what that one reads. Before compute capability 9 no kernel starts early.
template <typename... Params, typename... Args>
void launch_early(const char* name, void (*kernel)(Params...), int64_t blocks, int threads,
                  size_t shared, cudaStream_t stream, Args&&... args) {
  if (blocks == 0) {
    return;
  }
  if (blocks > INT32_MAX) {
    throw_cuda_error(cudaErrorInvalidConfiguration, name, __FILE__, __LINE__);
  }
  cudaError_t status =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                           cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = device_facts().major >= 9 ? 1 : 0;
  if (status == cudaSuccess) {
    status = cudaLaunchKernelEx(&config, kernel, Params(args)...);
  }
  if (status != cudaSuccess) {
    throw_cuda_error(status, name, __FILE__, __LINE__);
  }
}

}  // namespace mdn::kernels::cuda
