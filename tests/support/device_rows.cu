#include "mdn/kernels/cuda/launch.h"
#include "tests/support/device_rows.h"

namespace mdn::test {
namespace {

constexpr int kThreads = 256;
constexpr int kBlocks = 2048;

__global__ void repeat_words(uint32_t* memory, int64_t words, int64_t rows) {
  const int64_t stride = int64_t{kThreads} * kBlocks;
  for (int64_t i = words + int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words * rows;
       i += stride) {
    memory[i] = memory[i % words];
  }
}

__global__ void compare_words(const uint32_t* memory, int64_t words, int64_t rows,
                              unsigned long long* different) {
  const int64_t stride = int64_t{kThreads} * kBlocks;
  unsigned long long count = 0;
  for (int64_t i = words + int64_t{blockIdx.x} * kThreads + threadIdx.x; i < words * rows;
       i += stride) {
    count += memory[i] != memory[i % words];
  }
  if (count > 0) {
    atomicAdd(different, count);
  }
}

}  // namespace

void repeat_row(void* memory, size_t row_bytes, int64_t rows) {
  kernels::cuda::launch("launch of repeat_words", repeat_words, kBlocks, kThreads, 0, nullptr,
                        static_cast<uint32_t*>(memory), static_cast<int64_t>(row_bytes / 4), rows);
}

int64_t count_different_words(const void* memory, size_t row_bytes, int64_t rows) {
  unsigned long long* different = nullptr;
  unsigned long long count = 0;
  MDN_CUDA_CHECK(cudaMalloc(&different, sizeof(count)));
  MDN_CUDA_CHECK(cudaMemset(different, 0, sizeof(count)));
  kernels::cuda::launch("launch of compare_words", compare_words, kBlocks, kThreads, 0, nullptr,
                        static_cast<const uint32_t*>(memory), static_cast<int64_t>(row_bytes / 4),
                        rows, different);
  MDN_CUDA_CHECK(cudaMemcpy(&count, different, sizeof(count), cudaMemcpyDeviceToHost));
  MDN_CUDA_CHECK(cudaFree(different));
  return static_cast<int64_t>(count);
}

}  // namespace mdn::test
