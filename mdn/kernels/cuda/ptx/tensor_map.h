// Tensor maps: what the copy engine knows about a tensor in global memory (made on the host).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda::ptx {

/// Tokens and channels of the box that one copy moves: 64 x 64 elements of 16 bits, 8 KB, written
/// to shared memory with the 128-byte swizzle (ptx/descriptor.cuh).
inline constexpr int kBoxTokens = 64;
inline constexpr int kBoxChannels = 64;
inline constexpr int kBoxBytes = kBoxTokens * kBoxChannels * 2;

/// Of a [tokens, heads, channels] tensor of bf16 or fp16, 16-byte aligned; copies address it as
/// (channel, head, token). Throws where the driver refuses.
CUtensorMap make_tensor_map(DType dtype, const void* pointer, int64_t tokens, int64_t heads,
                            int64_t channels);

}  // namespace mdn::kernels::cuda::ptx
