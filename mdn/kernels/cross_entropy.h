// cross_entropy: losses of rows of logits, and the logits' gradient written over them.
//
//     loss[t] = log(sum_c exp(x[t, c])) - x[t, target[t]]      0 where the target is -100
//     x[t, c] <- exp(x[t, c]) / sum - [c = target[t]]          0 where the target is -100
//
// Only CUDA has a kernel of its own; elsewhere the operator is ATen's operations. Work is queued on
// `stream` (a cudaStream_t) of the current device and nothing waits for it.
#pragma once

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {

using Stream = void*;

struct CrossEntropy {
  int64_t rows = 0;
  int64_t vocab = 0;
  int64_t stride = 0;  // elements from row to row: vocab rounded up to a multiple of 8 or more;
                       // the columns past vocab count for nothing and get gradient 0
  DType dtype = DType::kBFloat16;
  void* logits = nullptr;            // at a multiple of 16 bytes
  const int64_t* targets = nullptr;  // a target outside [0, vocab) and not -100 makes a NaN loss
  float* losses = nullptr;           // [rows]
  bool gradient = false;             // whether it is wanted, over the logits
};

void cross_entropy(const CrossEntropy& call, Stream stream);

}  // namespace mdn::kernels::cuda
