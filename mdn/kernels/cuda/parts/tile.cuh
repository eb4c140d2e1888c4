// Tiles in shared memory: boxes of 64 columns (128 bytes) of 16-bit elements with the 128-byte
// swizzle, as the copy engine writes and wgmma reads them (ptx/descriptor.cuh). A tile of `rows`
// rows and more than 64 columns is a run of such boxes.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "mdn/kernels/cuda/ptx/convert.cuh"
#include "mdn/kernels/cuda/ptx/matrix.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::parts {

/// Byte of element (row, column) of a box of 64 columns.
__host__ __device__ constexpr int box_offset(int row, int column) {
  return row * 128 + (((column / 8) ^ (row % 8)) * 16) + (column % 8) * 2;
}

/// Byte of element (row, column) of a tile of `rows` rows and any number of columns.
__host__ __device__ constexpr int tile_offset(int rows, int row, int column) {
  return (column / 64) * rows * 128 + box_offset(row, column % 64);
}

/// This lane's address for moving a box [tokens, 64 columns] to or from accumulators of its
/// transpose [64 columns, tokens] (wgmma layout, `warp` 0 .. 3 of the warpgroup).
__device__ __forceinline__ uint32_t transposed_lane(uint32_t box, int warp, int lane) {
  const int row = lane / 16 * 8 + lane % 8;
  const int unit = (2 * warp + lane / 8 % 2) ^ (lane % 8);
  return box + row * 128 + unit * 16;
}

/// d = box^T for 64 tokens: d[4 j + 2 i + h] is token 8 j + 2 (lane % 4) + h, column
/// 16 warp + lane / 4 + 8 i. `address` is transposed_lane().
template <class T>
__device__ __forceinline__ void load_transposed(float (&d)[32], uint32_t address) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    uint32_t words[4];
    ptx::ldmatrix_trans(words, address + j * 1024);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = ptx::unpack<T>(words[i]);
      d[4 * j + 2 * i] = pair.x;
      d[4 * j + 2 * i + 1] = pair.y;
    }
  }
}

/// box = d^T, rounded to T (fp16 saturating). Follow with ptx::fence_async_shared() and a barrier
/// before the copy engine or wgmma reads the box.
template <class T>
__device__ __forceinline__ void store_transposed(uint32_t address, const float (&d)[32]) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    ptx::stmatrix_trans(address + j * 1024, ptx::pack<T>(d[4 * j], d[4 * j + 1]),
                        ptx::pack<T>(d[4 * j + 2], d[4 * j + 3]),
                        ptx::pack<T>(d[4 * j + 4], d[4 * j + 5]),
                        ptx::pack<T>(d[4 * j + 6], d[4 * j + 7]));
  }
}

/// The same without transposing: accumulators [64 rows, 64 columns] and a box of 64 rows.
__device__ __forceinline__ uint32_t plain_lane(uint32_t box, int warp, int lane) {
  const int row = 16 * warp + lane % 16;
  return box + row * 128;  // the unit is added by store_plain, swizzled
}

template <class T>
__device__ __forceinline__ void store_plain(uint32_t row_address, int lane, const float (&d)[32]) {
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const int unit = (j + lane / 16) ^ (lane % 8);
    ptx::stmatrix(row_address + unit * 16, ptx::pack<T>(d[4 * j], d[4 * j + 1]),
                  ptx::pack<T>(d[4 * j + 2], d[4 * j + 3]),
                  ptx::pack<T>(d[4 * j + 4], d[4 * j + 5]),
                  ptx::pack<T>(d[4 * j + 6], d[4 * j + 7]));
  }
}

/// out = fp16(scale[row] * in), saturating, for a tile of rows of 128 bytes, `rows` a power of two
/// (`in` and `out` may be the same tile), by kThreads threads. A thread has kBatch 16-byte loads in
/// flight: registers against latency.
template <class T, int kThreads, int kBatch = 2>
__device__ __forceinline__ void convert_rows(uint32_t out, uint32_t in, int bytes, int rows,
                                             const float* scale, int thread) {
#pragma unroll 1
  for (int begin = thread * 16; begin < bytes; begin += kBatch * kThreads * 16) {
    uint32_t x[kBatch][4];
    float factor[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = min(begin + i * kThreads * 16, bytes - 16);  // past the end: loaded in vain
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(x[i][0]), "=r"(x[i][1]), "=r"(x[i][2]), "=r"(x[i][3])
                   : "r"(in + at));
      factor[i] = scale[(at / 128) & (rows - 1)];
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int at = begin + i * kThreads * 16;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const float2 pair = ptx::unpack<T>(x[i][word]);
        x[i][word] = ptx::pack_half(pair.x * factor[i], pair.y * factor[i]);
      }
      if (at < bytes) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(out + at), "r"(x[i][0]),
                     "r"(x[i][1]), "r"(x[i][2]), "r"(x[i][3])
                     : "memory");
      }
    }
  }
}

}  // namespace mdn::kernels::cuda::parts
