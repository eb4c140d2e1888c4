// Pairs of fp32 to one word of two 16-bit elements (`low` in bits 0-15), and back.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mdn::kernels::cuda::ptx {

/// Round to nearest even; fp16 saturates: beyond +-65504 gives +-65504, never infinity.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
  uint32_t word;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

/// Round to nearest even; bf16 has the range of fp32.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

/// As T (__half or __nv_bfloat16).
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    return pack_half(low, high);
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    return pack_bf16(low, high);
  }
}

template <class T>
__device__ __forceinline__ float2 unpack(uint32_t word) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&word));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xFFFF0000u)};
  }
}

}  // namespace mdn::kernels::cuda::ptx
