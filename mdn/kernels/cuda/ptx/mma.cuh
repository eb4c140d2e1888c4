// mma.sync m16n8k16: products of one warp with 16-bit operands in registers and float32 sums, on
// every GPU from sm_80 on.
//
// With r = lane / 4 and c = 2 * (lane % 4), words holding the elements (., column) and (., column
// + 1), the lower one in bits 0-15:
//
//     A [16, 16]   a[0] (r, c)  a[1] (r + 8, c)  a[2] (r, c + 8)  a[3] (r + 8, c + 8)
//     B [16, 8]    as rows of its transpose: b0 (r, c)  b1 (r, c + 8)
//     D [16, 8]    d[0] (r, c)  d[1] (r, c + 1)  d[2] (r + 8, c)  d[3] (r + 8, c + 1)
//
// So two neighbouring D, rounded, are an A; and an A [16, 16] is the B of two products with its
// transpose: words 0 and 2 of the one, 1 and 3 of the other.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mdn::kernels::cuda::ptx {

/// d += A B.
template <class T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

/// The transpose of an 8x8 tile that is spread over the warp, word (r, c) a lane.
__device__ __forceinline__ uint32_t transpose(uint32_t word) {
  uint32_t result;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
  return result;
}

}  // namespace mdn::kernels::cuda::ptx
