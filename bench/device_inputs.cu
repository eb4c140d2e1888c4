#include "bench/device_inputs.h"

#include <algorithm>

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/launch.h"

namespace mdn::bench {
namespace {

using kernels::cuda::launch;

constexpr int kThreads = 256;
constexpr int kBlocks = 4096;
constexpr size_t kFlushBytes = size_t{256} << 20;  // several times any L2
constexpr int64_t kCopyBytes = int64_t{1} << 30;

/// Uniform in (0, 1): splitmix64 of a counter.
__device__ float uniform(uint64_t seed, uint64_t index) {
  uint64_t x = seed * 0x9e3779b97f4a7c15u + index * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return (static_cast<float>(x >> 40) + 0.5f) * 0x1p-24f;
}

__global__ void normal_kernel(void* to, int64_t count, DType dtype, float deviation,
                              uint64_t seed) {
  const int64_t stride = int64_t{kThreads} * kBlocks;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float radius = sqrtf(-2.0f * logf(uniform(seed, 2 * i)));
    const float x = deviation * radius * cospif(2.0f * uniform(seed, 2 * i + 1));
    kernels::cuda::store_element(to, i, dtype, x);
  }
}

__global__ void gates_kernel(float* alpha, float* mu, float* eta, float* beta, int64_t count,
                             uint64_t seed) {
  const int64_t stride = int64_t{kThreads} * kBlocks;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float step = 0.1f + 1.8f * uniform(seed, 5 * i);
    const float tangent = step * 4.0f * uniform(seed, 5 * i + 1);
    const float cap = 1.0f / (1.0f + tangent * tangent);  // cos²θ
    alpha[i] = fminf(cap, 0.8f + 0.2f * uniform(seed, 5 * i + 2));
    mu[i] = 0.8f + 0.2f * uniform(seed, 5 * i + 3);
    eta[i] = step;
    beta[i] = uniform(seed, 5 * i + 4) * (1.0f - cap);
  }
}

/// exp(-rate u), or u where rate is 0.
__global__ void uniform_kernel(float* to, int64_t count, float rate, uint64_t seed) {
  const int64_t stride = int64_t{kThreads} * kBlocks;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float x = uniform(seed, i);
    to[i] = rate == 0.0f ? x : expf(-rate * x);
  }
}

__global__ void in_place_kernel(float4* data, int64_t count) {
  constexpr int kInFlight = 4;
  const int64_t first = int64_t{blockIdx.x} * kThreads * kInFlight + threadIdx.x;
  float4 x[kInFlight];
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    if (first + i * kThreads < count) {
      x[i] = __ldcs(data + first + i * kThreads);
    }
  }
#pragma unroll
  for (int i = 0; i < kInFlight; ++i) {
    if (first + i * kThreads < count) {
      x[i].x += 1.0f;
      __stcs(data + first + i * kThreads, x[i]);
    }
  }
}

class DeviceMemory {
 public:
  explicit DeviceMemory(size_t bytes) { MDN_CUDA_CHECK(cudaMalloc(&data_, bytes)); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(data_); }
  void* get() const { return data_; }

 private:
  void* data_ = nullptr;
};

double time_calls(const std::function<void()>& before, const std::function<void()>& body,
                  cudaStream_t stream, int repeats) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  MDN_CUDA_CHECK(cudaEventCreate(&begin));
  MDN_CUDA_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 3; ++i) {  // three to warm up
    before();
    MDN_CUDA_CHECK(cudaEventRecord(begin, stream));
    body();
    MDN_CUDA_CHECK(cudaEventRecord(end, stream));
    MDN_CUDA_CHECK(cudaEventSynchronize(end));
    float milliseconds = 0;
    MDN_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (i >= 3) {
      times.push_back(milliseconds);
    }
  }
  MDN_CUDA_CHECK(cudaEventDestroy(begin));
  MDN_CUDA_CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace

void fill_normal(void* to, int64_t count, DType dtype, float deviation, uint64_t seed) {
  launch("launch of normal_kernel", normal_kernel, kBlocks, kThreads, 0, nullptr, to, count, dtype,
         deviation, seed);
}

void fill_layer_gates(float* alpha, float* mu, float* eta, float* beta, int64_t count,
                      uint64_t seed) {
  launch("launch of gates_kernel", gates_kernel, kBlocks, kThreads, 0, nullptr, alpha, mu, eta,
         beta, count, seed);
}

void fill_decays(float* to, int64_t count, float rate, uint64_t seed) {
  launch("launch of uniform_kernel", uniform_kernel, kBlocks, kThreads, 0, nullptr, to, count, rate,
         seed);
}

void fill_uniform(float* to, int64_t count, uint64_t seed) {
  fill_decays(to, count, 0.0f, seed);
}

double time_on_device(const std::function<void()>& body, cudaStream_t stream, int repeats) {
  static const DeviceMemory flush(kFlushBytes);
  const auto write_over = [&] {
    MDN_CUDA_CHECK(cudaMemsetAsync(flush.get(), 0, kFlushBytes, stream));
  };
  return time_calls(write_over, body, stream, repeats);
}

double time_unflushed(const std::function<void()>& body, cudaStream_t stream, int repeats) {
  return time_calls([] {}, body, stream, repeats);
}

double time_in_graph(const std::vector<std::function<void()>>& calls, cudaStream_t stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  MDN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (const auto& call : calls) {
    call();
  }
  MDN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  MDN_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  const double all =
      time_unflushed([&] { MDN_CUDA_CHECK(cudaGraphLaunch(replay, stream)); }, stream);
  MDN_CUDA_CHECK(cudaGraphExecDestroy(replay));
  MDN_CUDA_CHECK(cudaGraphDestroy(graph));
  return all / static_cast<double>(calls.size());
}

double measure_copy(cudaStream_t stream) {
  const DeviceMemory from(kCopyBytes), to(kCopyBytes);
  fill_normal(from.get(), kCopyBytes / 4, DType::kFloat32, 1.0f, 1);
  const auto copy = [&] {
    MDN_CUDA_CHECK(
        cudaMemcpyAsync(to.get(), from.get(), kCopyBytes, cudaMemcpyDeviceToDevice, stream));
  };
  return 2.0 * kCopyBytes / (time_unflushed(copy, stream) * 1e-3);
}

double measure_in_place(cudaStream_t stream) {
  const DeviceMemory data(kCopyBytes);
  fill_normal(data.get(), kCopyBytes / 4, DType::kFloat32, 1.0f, 1);
  const int64_t count = kCopyBytes / 16;
  const auto update = [&] {
    launch("launch of in_place_kernel", in_place_kernel,
           (count + kThreads * 4 - 1) / (kThreads * 4), kThreads, 0, stream,
           static_cast<float4*>(data.get()), count);
  };
  return 2.0 * kCopyBytes / (time_unflushed(update, stream) * 1e-3);
}

std::string describe_device() {
  int index = 0;
  MDN_CUDA_CHECK(cudaGetDevice(&index));
  cudaDeviceProp properties{};
  MDN_CUDA_CHECK(cudaGetDeviceProperties(&properties, index));
  int driver = 0;
  int runtime = 0;
  MDN_CUDA_CHECK(cudaDriverGetVersion(&driver));
  MDN_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  const auto version = [](int v) {
    return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
  };
  return std::string(properties.name) + ", " + std::to_string(properties.multiProcessorCount) +
         " SMs, driver for CUDA " + version(driver) + ", runtime " + version(runtime);
}

}  // namespace mdn::bench
