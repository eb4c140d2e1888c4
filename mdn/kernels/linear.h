// linear: products of a few rows with weight matrices, as single-token decoding has them.
//
//     y[b, o] = sum_i x[b, i] weight[o, i]  (+ bias[o])  (+ what y held, with `add`)
//
// x [B, in]; weight [out, in], bias [out], y [B, out] of each part: contiguous float32. All parts
// read the same x. Bound by the weights' memory traffic for small B; for many rows a matrix product
// is the better tool. Nothing is allocated.
//
// A row's result depends on nothing but that row and the weights: the same bits for any B, in any
// company, for any number of threads. Each sum runs over two vectors of partial sums, so that its
// error is at most about (in / 16 + 5) roundings of 2^-24 of sum_i |x_i w_i| with eight lanes.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "mdn/core/dtype.h"

namespace mdn::kernels {

struct LinearPart {
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: none
  int64_t out = 0;
  float* y = nullptr;
};

namespace cpu {

void linear(int64_t B, int64_t in, const float* x, std::span<const LinearPart> parts,
            bool add = false);

}  // namespace cpu

/// On CUDA with what stands in front of such a product and behind it, so that a layer of a decoder
/// is few launches:
///
///     u = x, or with `norm` rms_norm(x) rounded to the dtype
///     y[b, o] = sum_i u[b, i] weight[o, i]  (+ add[b, o])
///
/// or with `swiglu`, of weights [2 out, in], gate rows first:
///
///     y[b, o] = silu(sum_i u[b, i] weight[o, i]) sum_i u[b, i] weight[out + o, i]
///
/// Sums in float32, in one order that does not depend on the other rows. Work is queued on `stream`
/// (a cudaStream_t) of the current device and nothing waits for it. The first weights are read
/// while the kernel before it on the stream may still run, which must not write them.
namespace cuda {
using Stream = void*;

struct Linear {
  int64_t B = 0;  // 1 to kMostLinearRows
  int64_t in = 0;
  int64_t out = 0;
  DType dtype = DType::kBFloat16;  // of x, weight, add and y
  const void* x = nullptr;         // [B, in], contiguous
  const float* norm = nullptr;     // [in] or null
  double eps = 0;                  // of the norm
  const void* weight = nullptr;    // [out, in], with swiglu [2 out, in]; 16-byte aligned
  bool swiglu = false;
  const void* add = nullptr;  // [B, out] or null; may be y
  void* y = nullptr;          // [B, out]
};

inline constexpr int64_t kMostLinearRows = 8;

std::string linear_unsupported(const Linear& call);  // empty: supported
void linear(const Linear& call, Stream stream);
}  // namespace cuda
}  // namespace mdn::kernels
