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
}  // namespace mdn::kernels
