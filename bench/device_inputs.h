// Random inputs made on the device, and what the device can do, for the CUDA benchmarks.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mdn/core/dtype.h"
#include "mdn/kernels/cuda/check.h"

namespace mdn::bench {

/// Memory on the device that lives as long as this.
class DevicePool {
 public:
  /// Null for no bytes.
  void* take(size_t bytes) {
    if (bytes == 0) {
      return nullptr;
    }
    void* memory = nullptr;
    MDN_CUDA_CHECK(cudaMalloc(&memory, bytes));
    taken_.emplace_back(memory, &release);
    return memory;
  }
  float* floats(int64_t count) { return static_cast<float*>(take(count * sizeof(float))); }

 private:
  static void release(void* memory) { cudaFree(memory); }
  std::vector<std::unique_ptr<void, void (*)(void*)>> taken_;
};

/// Standard normal numbers times `deviation`; float32, float16 or bfloat16.
void fill_normal(void* to, int64_t count, DType dtype, float deviation, uint64_t seed);

/// Gates as the published layer makes them: alpha <= cos²θ, beta <= sin²θ, mu 0.8-1, eta 0.1-1.9.
void fill_layer_gates(float* alpha, float* mu, float* eta, float* beta, int64_t count,
                      uint64_t seed);

/// Numbers exp(-rate u), u uniform in (0, 1): decays of channels.
void fill_decays(float* to, int64_t count, float rate, uint64_t seed);

/// Uniform in (0, 1).
void fill_uniform(float* to, int64_t count, uint64_t seed);

/// Median over `repeats` calls of `body`, each after the L2 cache has been written over, in ms.
/// `body` queues its work on `stream`.
double time_on_device(const std::function<void()>& body, cudaStream_t stream, int repeats = 30);

/// Median over `repeats` calls without flushing: for bodies that touch more than the cache holds.
double time_unflushed(const std::function<void()>& body, cudaStream_t stream, int repeats = 30);

/// Milliseconds a call takes in a replayed graph of `calls`, one after the other: for calls so
/// short that a launch from the host would be what is measured. Together they should touch more
/// than the cache holds.
double time_in_graph(const std::vector<std::function<void()>>& calls, cudaStream_t stream);

/// Bytes read and written a second by a device-to-device copy of 1 GiB.
double measure_copy(cudaStream_t stream);

/// The same by a kernel that reads and writes each element of 1 GiB in place.
double measure_in_place(cudaStream_t stream);

/// "NVIDIA H100 80GB HBM3, 132 SMs, driver 13.0, runtime 13.0".
std::string describe_device();

}  // namespace mdn::bench
