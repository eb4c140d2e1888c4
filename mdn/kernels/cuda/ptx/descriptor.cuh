// Descriptors of operand tiles in shared memory, as wgmma wants them, 128-byte swizzle only.
//
// A tile is kept in boxes of 64 elements (128 bytes) of its contiguous index by any number of rows:
// row r of a box starts at 128 * r and its 16-byte unit u lies at unit u ^ (r % 8), which is what
// the copy engine writes with CU_TENSOR_MAP_SWIZZLE_128B. A box starts on a multiple of 1024 bytes.
#pragma once

#include <cstdint>

namespace mdn::kernels::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

namespace detail {
/// Both offsets in bytes. Bits: 0-13 address / 16, 16-29 leading / 16, 32-45 stride / 16, 62 the
/// 128-byte swizzle.
__device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t leading,
                                               uint32_t stride) {
  return uint64_t{(address & 0x3FFFF) >> 4} | (uint64_t{leading >> 4} << 16) |
         (uint64_t{stride >> 4} << 32) | (uint64_t{1} << 62);
}
}  // namespace detail

/// The summed index is contiguous (Major::kK): rows of the box are rows of A, or of B^T.
__device__ __forceinline__ uint64_t descriptor_k(uint32_t address) {
  return detail::descriptor(address, 16, 1024);  // 8 rows further: 1024 bytes; leading is unused
}

/// The rows of the box are the summed index (Major::kMN); `box_bytes` leads to the next 64 columns.
__device__ __forceinline__ uint64_t descriptor_mn(uint32_t address, uint32_t box_bytes) {
  return detail::descriptor(address, box_bytes, 1024);
}

/// The same tile `bytes` further on (a multiple of 16). Steps of 16 along the summed index: kK, 32
/// bytes inside a box; kMN, 2048 bytes (16 rows).
__device__ __forceinline__ uint64_t descriptor_advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace mdn::kernels::cuda::ptx
