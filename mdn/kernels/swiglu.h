// swiglu: y = silu(a) b, element by element; contiguous float32 on the CPU, any DType but float64
// on CUDA, where a and b may also be columns of wider rows.
#pragma once

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels {
namespace cpu {

void swiglu_forward(int64_t count, const float* a, const float* b, float* y);
/// d_a and d_b are overwritten.
void swiglu_backward(int64_t count, const float* a, const float* b, const float* d_y, float* d_a,
                     float* d_b);

}  // namespace cpu

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it.
namespace cuda {
using Stream = void*;

/// a, b [rows, columns] with `stride` elements from row to row; y, d_y contiguous. Any sizes;
/// fastest where rows start at multiples of 16 bytes and have a multiple of 8 columns.
struct SwigluForward {
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::kBFloat16;
  const void* a = nullptr;
  const void* b = nullptr;
  int64_t stride = 0;
  void* y = nullptr;
};

struct SwigluBackward {
  int64_t rows = 0;
  int64_t columns = 0;
  DType dtype = DType::kBFloat16;
  const void* a = nullptr;
  const void* b = nullptr;
  int64_t stride = 0;
  const void* d_y = nullptr;
  void* d_a = nullptr;  // with the stride of d_b
  void* d_b = nullptr;
  int64_t d_stride = 0;
  void* y = nullptr;  // the forward pass's result again; null: not wanted
};

void swiglu_forward(const SwigluForward& call, Stream stream);
void swiglu_backward(const SwigluBackward& call, Stream stream);
}  // namespace cuda
}  // namespace mdn::kernels
