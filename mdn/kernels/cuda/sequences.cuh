// Where the sequence of a token starts and ends, for kernels that walk along tokens.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/divide.cuh"

namespace mdn::kernels::cuda {

/// Tokens are numbered through all rows. Without cu_seqlens every `length` of them are a sequence.
struct SequenceTable {
  const int64_t* cu_seqlens = nullptr;  // [count + 1] on the device, or null
  int64_t count = 0;
  int64_t length = 0;
};

/// The sequence of a token; moves forward with it.
class SequenceWalk {
 public:
  __device__ SequenceWalk(const SequenceTable& table, int64_t token) : table_(table) {
    if (table.cu_seqlens == nullptr) {
      start_ = divide(token, table.length).quotient * table.length;
      end_ = start_ + table.length;
      return;
    }
    int64_t low = 0, high = table.count;  // cu_seqlens[low] <= token < cu_seqlens[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (table.cu_seqlens[middle] <= token) {
        low = middle;
      } else {
        high = middle;
      }
    }
    index_ = low;
    start_ = table.cu_seqlens[low];
    end_ = table.cu_seqlens[low + 1];
  }

  __device__ int64_t start() const { return start_; }
  __device__ int64_t end() const { return end_; }

  /// To the next sequence that is not empty. There must be one.
  __device__ void next() {
    do {
      start_ = end_;
      end_ =
          table_.cu_seqlens == nullptr ? start_ + table_.length : table_.cu_seqlens[++index_ + 1];
    } while (end_ == start_);
  }

 private:
  const SequenceTable& table_;
  int64_t index_ = 0, start_ = 0, end_ = 0;
};

}  // namespace mdn::kernels::cuda
