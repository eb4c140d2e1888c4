#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kScanThreads = 1024;
constexpr int kFillThreads = 256;

/// begin[n] = sum over i < n of ceil(length of sequence i / C), by one block: every thread sums a
/// run of sequences, the runs' sums are scanned, and each thread writes its run.
__global__ void __launch_bounds__(kScanThreads)
    scan_chunks(const int64_t* __restrict__ cu_seqlens, int64_t N, int chunk_length,
                int32_t* __restrict__ begin) {
  __shared__ int32_t sums[kScanThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t run = (N + kScanThreads - 1) / kScanThreads;
  const int64_t first = min(N, thread * run);
  const int64_t last = min(N, first + run);
  int32_t total = 0;
  for (int64_t n = first; n < last; ++n) {
    total +=
        static_cast<int32_t>((cu_seqlens[n + 1] - cu_seqlens[n] + chunk_length - 1) / chunk_length);
  }
  sums[thread] = total;
  __syncthreads();
  for (int step = 1; step < kScanThreads; step *= 2) {  // inclusive scan
    const int32_t add = thread >= step ? sums[thread - step] : 0;
    __syncthreads();
    sums[thread] += add;
    __syncthreads();
  }
  int32_t at = sums[thread] - total;
  for (int64_t n = first; n < last; ++n) {
    begin[n] = at;
    at +=
        static_cast<int32_t>((cu_seqlens[n + 1] - cu_seqlens[n] + chunk_length - 1) / chunk_length);
  }
  if (thread == kScanThreads - 1) {
    begin[N] = sums[thread];
  }
}

/// One thread an entry; a packed chunk finds its sequence by binary search in `begin`.
__global__ void __launch_bounds__(kFillThreads)
    fill_chunks(const int64_t* __restrict__ cu_seqlens, int64_t N, int64_t T, int chunk_length,
                int64_t entries, Chunk* __restrict__ chunks, int32_t* __restrict__ begin,
                uint32_t* __restrict__ zeros, int64_t zero_words) {
  const int64_t entry = int64_t{blockIdx.x} * kFillThreads + threadIdx.x;
  for (int64_t i = entry; i < zero_words; i += int64_t{gridDim.x} * kFillThreads) {
    zeros[i] = 0;
  }
  int64_t sequence = -1;
  int64_t index = 0;  // of the chunk in its sequence
  int64_t first = 0;  // token of the sequence
  int64_t length = 0;
  if (cu_seqlens == nullptr) {
    const int64_t per_row = (T + chunk_length - 1) / chunk_length;
    if (entry <= N) {  // entries >= N, and the grid has at least one thread more
      begin[entry] = static_cast<int32_t>(entry * per_row);
    }
    if (entry >= entries) {
      return;
    }
    sequence = entry / per_row;
    index = entry % per_row;
    first = sequence * T;
    length = T;
  } else {
    if (entry >= entries) {
      return;
    }
    if (entry < begin[N]) {
      int64_t low = 0;  // the last sequence with begin[low] <= entry; empty ones share a begin
      int64_t high = N;
      while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (begin[middle] <= entry ? low : high) = middle;
      }
      sequence = low;
      index = entry - begin[low];
      first = cu_seqlens[low];
      length = cu_seqlens[low + 1] - first;
    }
  }
  Chunk chunk{0, -1, 0, 0};
  if (sequence >= 0) {
    const int64_t start = index * chunk_length;
    chunk.token = first + start;
    chunk.sequence = static_cast<int32_t>(sequence);
    chunk.length = static_cast<int16_t>(min(int64_t{chunk_length}, length - start));
    chunk.flags = static_cast<int16_t>((index == 0 ? kFirstChunk : 0) |
                                       (start + chunk_length >= length ? kLastChunk : 0));
  }
  chunks[entry] = chunk;
}

}  // namespace

int64_t max_chunks(const MomentumDeltaRuleProblem& problem, int chunk_length) {
  if (problem.cu_seqlens == nullptr) {
    return problem.B * ((problem.T + chunk_length - 1) / chunk_length);
  }
  // Sum of ceil(length / C) over at most min(N, T) sequences that are not empty.
  const int64_t filled = problem.N < problem.T ? problem.N : problem.T;
  return (problem.T + filled * (chunk_length - 1)) / chunk_length;
}

size_t chunk_table_bytes(const MomentumDeltaRuleProblem& problem, int chunk_length) {
  return round_up(static_cast<size_t>(max_chunks(problem, chunk_length)) * sizeof(Chunk)) +
         round_up(static_cast<size_t>(problem.N + 1) * sizeof(int32_t));
}

ChunkTable make_chunk_table(const MomentumDeltaRuleProblem& problem, int chunk_length, void* memory,
                            cudaStream_t stream, uint32_t* zeros, int64_t zero_words) {
  const int64_t entries = max_chunks(problem, chunk_length);
  auto* chunks = static_cast<Chunk*>(memory);
  auto* begin = reinterpret_cast<int32_t*>(static_cast<char*>(memory) +
                                           round_up(static_cast<size_t>(entries) * sizeof(Chunk)));
  if (problem.cu_seqlens != nullptr) {
    launch("launch of scan_chunks", scan_chunks, 1, kScanThreads, 0, stream, problem.cu_seqlens,
           problem.N, chunk_length, begin);
  }
  const int64_t blocks = entries / kFillThreads + 1;  // at least one thread more than entries
  launch("launch of fill_chunks", fill_chunks, blocks, kFillThreads, 0, stream, problem.cu_seqlens,
         problem.N, problem.T, chunk_length, entries, chunks, begin, zeros, zero_words);
  return {chunks, begin, entries};
}

}  // namespace mdn::kernels::cuda
