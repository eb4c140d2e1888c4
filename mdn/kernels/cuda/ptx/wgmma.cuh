// wgmma: D[64, N] (+)= A[64, 16] * B[16, N] by one warpgroup, fp16 or bf16 operands, fp32 sums.
//
// D lies in registers: thread t of the warpgroup (warp w = t / 32, lane l = t % 32) holds in
// d[4 * j + 2 * i + h] the element of row 16 * w + l / 4 + 8 * i, column 8 * j + 2 * (l % 4) + h.
// A comes from registers (`_ra`: four words, see parts/fragment.cuh) or shared memory (`_sa`), B
// always from shared memory; descriptors are made in ptx/descriptor.cuh.
//
// The instructions run asynchronously. Order of use: wgmma_fence() (after ordinary code touched D
// or A), the products, wgmma_commit(), and wgmma_wait<groups still allowed in flight>() before D is
// read or A is overwritten.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace mdn::kernels::cuda::ptx {

/// Orders earlier register accesses of the warpgroup before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// Closes a group of products.
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// Waits until at most `kInFlight` of the latest groups are unfinished.
template <int kInFlight>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
}

/// Tells the compiler that registers change here: keeps it from moving accesses across a wait.
template <int kCount>
__device__ __forceinline__ void wgmma_touch(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}

/// How B lies in shared memory: kK, rows of B^T with the summed index contiguous; kMN, rows of B.
enum class Major : int { kK = 0, kMN = 1 };

// Operand lists of the inline assembly: %0 .. %(n-1) are the accumulators.
#define MDN_WGMMA_LIST_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MDN_WGMMA_LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define MDN_WGMMA_LIST_32 \
  MDN_WGMMA_LIST_16       \
  ", "                    \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MDN_WGMMA_LIST_64                                                            \
  MDN_WGMMA_LIST_32                                                                  \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MDN_WGMMA_LIST_128                                                                     \
  MDN_WGMMA_LIST_64                                                                            \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define MDN_WGMMA_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define MDN_WGMMA_D8(i) MDN_WGMMA_D4(i), MDN_WGMMA_D4((i) + 4)
#define MDN_WGMMA_D16(i) MDN_WGMMA_D8(i), MDN_WGMMA_D8((i) + 8)
#define MDN_WGMMA_D32(i) MDN_WGMMA_D16(i), MDN_WGMMA_D16((i) + 16)
#define MDN_WGMMA_D64(i) MDN_WGMMA_D32(i), MDN_WGMMA_D32((i) + 32)
#define MDN_WGMMA_D128(i) MDN_WGMMA_D64(i), MDN_WGMMA_D64((i) + 64)

#define MDN_WGMMA_RA(TYPE, N, R, A0, A1, A2, A3, B, P, TB)                                    \
  asm volatile(                                                                               \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %" P                                                  \
      ", 0;\n"                                                                                \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" MDN_WGMMA_LIST_##R \
      "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" TB ";\n}\n"               \
      : MDN_WGMMA_D##R(0)                                                                     \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(int(kB)))

#define MDN_WGMMA_SA(TYPE, N, R, A, B, P, TA, TB)                                           \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" P                                       \
               ", 0;\n"                                                                     \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE              \
               " {" MDN_WGMMA_LIST_##R "}, %" A ", %" B ", p, 1, 1, %" TA ", %" TB ";\n}\n" \
               : MDN_WGMMA_D##R(0)                                                          \
               : "l"(a), "l"(b), "r"(accumulate), "n"(int(kA)), "n"(int(kB)))

/// D = A B (accumulate 0) or D + A B, A in registers. kRegisters = N / 2.
template <class T, Major kB, int kRegisters>
__device__ __forceinline__ void wgmma_ra(float (&d)[kRegisters], const uint32_t (&a)[4], uint64_t b,
                                         int accumulate = 1) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kRegisters == 8) {
    if constexpr (kHalf) {
      MDN_WGMMA_RA("f16", 16, 8, "8", "9", "10", "11", "12", "13", "14");
    } else {
      MDN_WGMMA_RA("bf16", 16, 8, "8", "9", "10", "11", "12", "13", "14");
    }
  } else if constexpr (kRegisters == 16) {
    if constexpr (kHalf) {
      MDN_WGMMA_RA("f16", 32, 16, "16", "17", "18", "19", "20", "21", "22");
    } else {
      MDN_WGMMA_RA("bf16", 32, 16, "16", "17", "18", "19", "20", "21", "22");
    }
  } else if constexpr (kRegisters == 32) {
    if constexpr (kHalf) {
      MDN_WGMMA_RA("f16", 64, 32, "32", "33", "34", "35", "36", "37", "38");
    } else {
      MDN_WGMMA_RA("bf16", 64, 32, "32", "33", "34", "35", "36", "37", "38");
    }
  } else if constexpr (kRegisters == 64) {
    if constexpr (kHalf) {
      MDN_WGMMA_RA("f16", 128, 64, "64", "65", "66", "67", "68", "69", "70");
    } else {
      MDN_WGMMA_RA("bf16", 128, 64, "64", "65", "66", "67", "68", "69", "70");
    }
  } else if constexpr (kRegisters == 128) {
    if constexpr (kHalf) {
      MDN_WGMMA_RA("f16", 256, 128, "128", "129", "130", "131", "132", "133", "134");
    } else {
      MDN_WGMMA_RA("bf16", 256, 128, "128", "129", "130", "131", "132", "133", "134");
    }
  } else {
    static_assert(kRegisters == 0, "wgmma: N must be 16, 32, 64, 128 or 256");
  }
}

/// The same with A in shared memory; kA as kB, with rows of A in the place of rows of B^T.
template <class T, Major kA, Major kB, int kRegisters>
__device__ __forceinline__ void wgmma_sa(float (&d)[kRegisters], uint64_t a, uint64_t b,
                                         int accumulate = 1) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  if constexpr (kRegisters == 8) {
    if constexpr (kHalf) {
      MDN_WGMMA_SA("f16", 16, 8, "8", "9", "10", "11", "12");
    } else {
      MDN_WGMMA_SA("bf16", 16, 8, "8", "9", "10", "11", "12");
    }
  } else if constexpr (kRegisters == 16) {
    if constexpr (kHalf) {
      MDN_WGMMA_SA("f16", 32, 16, "16", "17", "18", "19", "20");
    } else {
      MDN_WGMMA_SA("bf16", 32, 16, "16", "17", "18", "19", "20");
    }
  } else if constexpr (kRegisters == 32) {
    if constexpr (kHalf) {
      MDN_WGMMA_SA("f16", 64, 32, "32", "33", "34", "35", "36");
    } else {
      MDN_WGMMA_SA("bf16", 64, 32, "32", "33", "34", "35", "36");
    }
  } else if constexpr (kRegisters == 64) {
    if constexpr (kHalf) {
      MDN_WGMMA_SA("f16", 128, 64, "64", "65", "66", "67", "68");
    } else {
      MDN_WGMMA_SA("bf16", 128, 64, "64", "65", "66", "67", "68");
    }
  } else if constexpr (kRegisters == 128) {
    if constexpr (kHalf) {
      MDN_WGMMA_SA("f16", 256, 128, "128", "129", "130", "131", "132");
    } else {
      MDN_WGMMA_SA("bf16", 256, 128, "128", "129", "130", "131", "132");
    }
  } else {
    static_assert(kRegisters == 0, "wgmma: N must be 16, 32, 64, 128 or 256");
  }
}

#undef MDN_WGMMA_LIST_8
#undef MDN_WGMMA_LIST_16
#undef MDN_WGMMA_LIST_32
#undef MDN_WGMMA_LIST_64
#undef MDN_WGMMA_LIST_128
#undef MDN_WGMMA_D4
#undef MDN_WGMMA_D8
#undef MDN_WGMMA_D16
#undef MDN_WGMMA_D32
#undef MDN_WGMMA_D64
#undef MDN_WGMMA_D128
#undef MDN_WGMMA_RA
#undef MDN_WGMMA_SA

}  // namespace mdn::kernels::cuda::ptx
