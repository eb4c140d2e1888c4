// From accumulators to the register A operand of the next product: the layouts match, so a slice of
// 16 columns of D is one m64k16 A operand after rounding, with no exchange between threads.
#pragma once

#include <cstdint>

#include "mdn/kernels/cuda/ptx/convert.cuh"

namespace mdn::kernels::cuda::parts {

/// a = columns 16 * slice .. 16 * slice + 15 of d, rounded to T (fp16 saturating).
template <class T, int kRegisters>
__device__ __forceinline__ void fragment(uint32_t (&a)[4], const float (&d)[kRegisters],
                                         int slice) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = ptx::pack<T>(d[8 * slice + 2 * i], d[8 * slice + 2 * i + 1]);
  }
}

/// The same, converted anew (ptx::pack_again).
template <class T, int kRegisters>
__device__ __forceinline__ void fragment_again(uint32_t (&a)[4], const float (&d)[kRegisters],
                                               int slice) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a[i] = ptx::pack_again<T>(d[8 * slice + 2 * i], d[8 * slice + 2 * i + 1]);
  }
}

/// The token-dependent factors of this thread's columns: column 8 j + 2 (lane % 4) + h of a vector
/// of 64 floats in shared memory. `vector` is already offset by 2 * (lane % 4).
__device__ __forceinline__ float2 column_pair(const float* vector, int j) {
  return *reinterpret_cast<const float2*>(vector + 8 * j);
}

/// out = sign * vector[column] * d of one slice that is in fp16, the factors rounded to fp16 first.
/// What passes 65504 becomes infinite: factors and products must not.
__device__ __forceinline__ void scaled_fragment(uint32_t (&out)[4], const uint32_t (&d)[4],
                                                const float* vector, int slice, float sign) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const float2 pair = column_pair(vector, 2 * slice + i / 2);
    const uint32_t factor = ptx::pack_half(sign * pair.x, sign * pair.y);
    out[i] = ptx::multiply_halves(factor, d[i]);
    out[i + 1] = ptx::multiply_halves(factor, d[i + 1]);
  }
}

}  // namespace mdn::kernels::cuda::parts
