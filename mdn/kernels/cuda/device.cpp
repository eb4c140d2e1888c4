#include "mdn/kernels/cuda/device.h"

#include <cuda_runtime_api.h>

#include <array>
#include <mutex>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kMaxDevices = 64;

DeviceFacts read_facts(int index) {
  const auto attribute = [index](cudaDeviceAttr what) {
    int value = 0;
    MDN_CUDA_CHECK(cudaDeviceGetAttribute(&value, what, index));
    return value;
  };
  DeviceFacts facts;
  facts.index = index;
  facts.major = attribute(cudaDevAttrComputeCapabilityMajor);
  facts.minor = attribute(cudaDevAttrComputeCapabilityMinor);
  facts.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  facts.shared_memory = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return facts;
}

}  // namespace

const DeviceFacts& device_facts() {
  static std::array<DeviceFacts, kMaxDevices> facts;
  static std::array<std::once_flag, kMaxDevices> known;
  int index = 0;
  MDN_CUDA_CHECK(cudaGetDevice(&index));
  MDN_CHECK(index < kMaxDevices, "CUDA device {}: at most {} devices are handled", index,
            kMaxDevices);
  std::call_once(known[index], [index] { facts[index] = read_facts(index); });
  return facts[index];
}

}  // namespace mdn::kernels::cuda
