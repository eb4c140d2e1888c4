// Backward pass, what the gradients kernel leaves to do for dq and dk. With a query/key head for
// every value head: the derivative of the L2 norm in all tiles of key channels but the last, by
// factors that that kernel found. With shared heads: the sum over a group's value heads and the
// derivative of the norm in all of a row.
#pragma once

#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_layout.cuh"

namespace mdn::kernels::cuda::backward_pass {

inline constexpr int kFinishThreads = 256;

/// dx = y + factor x in the first K / 64 - 1 tiles, a block an item. q and k are the rows as given.
template <class E>
__global__ void __launch_bounds__(kFinishThreads)
    finish_tiles_kernel(const __grid_constant__ Arguments args, const E* q, const E* k) {
  ptx::wait_for_dependencies();
  const int64_t entry = blockIdx.x / args.heads;
  const int head = args.head + static_cast<int>(blockIdx.x % args.heads);
  const Chunk chunk = args.chunks[entry];
  const float* factors = norm_factors(args, blockIdx.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t stride = int64_t{args.HV} * args.K;
  const int64_t first =
      (chunk.token + thread / 8) * stride + int64_t{head} * args.K + thread % 8 * 8;
  for (int tile = 0; tile < args.K / 64 - 1; ++tile) {
    uint4 x[4];  // 8 channels of two rows of q, then of k
    uint4 y[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t at = first + i % 2 * 32 * stride + 64 * tile;
      if (thread / 8 + i % 2 * 32 < chunk.length) {
        x[i] = *reinterpret_cast<const uint4*>((i < 2 ? q : k) + at);
        y[i] = *reinterpret_cast<const uint4*>(static_cast<const E*>(i < 2 ? args.d_q : args.d_k) +
                                               at);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = thread / 8 + i % 2 * 32;
      if (row < chunk.length) {
        const float factor = factors[i / 2 * kChunk + row];
        const auto word = [factor](uint32_t y, uint32_t x) {
          const float2 a = ptx::unpack<E>(y);
          const float2 b = ptx::unpack<E>(x);
          return ptx::pack<E>(a.x + factor * b.x, a.y + factor * b.y);
        };
        const int64_t at = first + i % 2 * 32 * stride + 64 * tile;
        *reinterpret_cast<uint4*>(static_cast<E*>(i < 2 ? args.d_q : args.d_k) + at) = {
            word(y[i].x, x[i].x), word(y[i].y, x[i].y), word(y[i].z, x[i].z), word(y[i].w, x[i].w)};
      }
    }
  }
}

/// Rows of dq or dk with shared heads.
template <class E>
struct UnfinishedRows {
  const float* from;  // [rows, group, K]
  const E* raw;       // null: without the derivative of the norm
  E* d;               // [rows, K]
};

/// Rows of dq, then of dk: the sum over the group's value heads in a fixed order, then, with `raw`,
/// the derivative of the norm: with y the gradient of the raw row x at fixed norm and
/// r^2 = 1 / (|x|^2 + eps), dx = y - x r^2 (x . y). A warp a row of K channels, half of the blocks
/// each.
template <class E>
__global__ void __launch_bounds__(kFinishThreads)
    finish_rows_kernel(UnfinishedRows<E> q, UnfinishedRows<E> k, int64_t rows, int K, int group) {
  ptx::wait_for_dependencies();
  const bool first = blockIdx.x < gridDim.x / 2;
  const auto [from, raw, d] = first ? q : k;
  const int64_t row =
      (blockIdx.x - (first ? 0 : gridDim.x / 2)) * int64_t{kFinishThreads / 32} + threadIdx.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (row >= rows) {
    return;
  }
  const int pairs = K / 64;  // of channels, a lane
  float2 y[4];
  float2 x[4];
  float dot = 0.0F;
  float norm = 0.0F;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < pairs) {
      const int channel = 64 * i + 2 * lane;
      y[i] = float2{0.0F, 0.0F};
      for (int h = 0; h < group; ++h) {
        const float2 part =
            *reinterpret_cast<const float2*>(from + (row * group + h) * K + channel);
        y[i].x += part.x;
        y[i].y += part.y;
      }
      if (raw != nullptr) {
        x[i] = ptx::unpack<E>(*reinterpret_cast<const uint32_t*>(raw + row * K + channel));
        dot += x[i].x * y[i].x + x[i].y * y[i].y;
        norm += x[i].x * x[i].x + x[i].y * x[i].y;
      }
    }
  }
  float factor = 0.0F;
  if (raw != nullptr) {
    factor = sum_of_lanes<32>(dot) / (sum_of_lanes<32>(norm) + static_cast<float>(kL2NormEps));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < pairs) {
      if (raw != nullptr) {
        y[i].x -= factor * x[i].x;
        y[i].y -= factor * x[i].y;
      }
      *reinterpret_cast<uint32_t*>(d + row * K + 64 * i + 2 * lane) = ptx::pack<E>(y[i].x, y[i].y);
    }
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
