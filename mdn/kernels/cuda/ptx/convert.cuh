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

/// Products of two pairs of fp16, rounded to nearest even.
__device__ __forceinline__ uint32_t multiply_halves(uint32_t x, uint32_t y) {
  uint32_t word;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(word) : "r"(x), "r"(y));
  return word;
}

/// The smaller ones of two pairs of fp16; NaN only where both are.
__device__ __forceinline__ uint32_t least_halves(uint32_t x, uint32_t y) {
  uint32_t word;
  asm("min.f16x2 %0, %1, %2;" : "=r"(word) : "r"(x), "r"(y));
  return word;
}

/// The values of pack<T> by another instruction. The assembler keeps the result of two equal
/// conversions in a register from the first to the second; where that costs more registers than
/// there are, the second use converts anew by this one.
template <class T>
__device__ __forceinline__ uint32_t pack_again(float low, float high);

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

template <>
__device__ __forceinline__ uint32_t pack_again<__nv_bfloat16>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.satfinite.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <>
__device__ __forceinline__ uint32_t pack_again<__half>(float low, float high) {
  uint32_t word;
  asm("{\n.reg .b32 x;\n"
      "cvt.rn.f16x2.f32 x, %1, %2;\n"
      "min.f16x2 x, x, %3;\n"
      "max.f16x2 %0, x, %4;\n}\n"
      : "=r"(word)
      : "f"(high), "f"(low), "r"(0x7BFF7BFFu), "r"(0xFBFFFBFFu));
  return word;
}

}  // namespace mdn::kernels::cuda::ptx
