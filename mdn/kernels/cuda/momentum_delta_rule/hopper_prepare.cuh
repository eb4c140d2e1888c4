// Prepare: everything of a chunk that does not depend on the states. Writes the records of
// hopper_saved.h. A block takes one (chunk, query/key head) after another (hopper_progress.cuh),
// and asks for the next one's gates, q and k while it works.
//
//   1. the masks H and G, while the copy engine brings q and k: the recurrence inside blocks of 16
//      tokens, rank two beyond (only products and sums of non-negative numbers: no logarithm,
//      division or difference)
//   2. (Q K^T)^T and K K^T by wgmma, raw rows; the L2 norms are folded in as factors of rows and
//      columns
//   3. A = I + (H o KK^T) D, a warp a row of blocks, and its inverse T from warp to warp; PGD where
//      a warp has less of A
//   4. T rounded to fp16, and the record written
//
// With several value heads to a query/key head the scores are made once, the rest is repeated.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_inverse.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_masks.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_prepare_shared.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/ptx/async_copy.cuh"
#include "mdn/kernels/cuda/ptx/fence.cuh"
#include "mdn/kernels/cuda/ptx/mbarrier.cuh"
#include "mdn/kernels/cuda/ptx/thread.cuh"
#include "mdn/kernels/cuda/ptx/tma.cuh"
#include "mdn/kernels/cuda/ptx/wgmma.cuh"

namespace mdn::kernels::cuda::hopper {

/// Asks for an entry of the chunk table, one thread.
__device__ __forceinline__ void fetch_chunk(Chunk& chunk, const Chunk* from) {
#pragma unroll
  for (size_t i = 0; i < sizeof(Chunk); i += 4) {
    ptx::async_copy_word(reinterpret_cast<char*>(&chunk) + i,
                         reinterpret_cast<const char*>(from) + i);
  }
}

/// Waits for this thread's last record and says that it is there.
template <int K>
__device__ __forceinline__ void publish_last(PrepareShared<K>& shared,
                                             const PrepareParams& params) {
  if (shared.unpublished >= 0) {
    ptx::store_wait<0>();
    publish(ready_words(params.progress) + shared.unpublished);
    shared.unpublished = -1;
  }
}

/// Draws a number for the block's next item; the answer takes its time.
template <int K>
__device__ __forceinline__ uint32_t draw_ticket(const PrepareShared<K>& shared,
                                                const PrepareParams& params) {
  return atomicAdd(shared.helps_only ? &params.progress->taken_helpers : &params.progress->taken,
                   1u);
}

/// The item of that number; none where nothing is left for this block.
template <int K>
__device__ __forceinline__ Item ticket_item(PrepareShared<K>& shared, const PrepareParams& params,
                                            uint32_t ticket) {
  const ItemOrder& order = params.order;
  if (!shared.helps_only) {
    const int index = static_cast<int>(gridDim.x + ticket);
    if (index < order.shared_items) {
      return order.item(index);
    }
    if (order.shared_items == order.items ||
        (!on_helper(order) && atomicAdd(&params.progress->helpers, 0u) != 0)) {
      return {-1, 0};
    }
    shared.helps_only = true;
    atomicAdd(&params.progress->helpers, 1u);
    ticket = draw_ticket(shared, params);
  }
  return order.item(order.shared_items + static_cast<int>(ticket));
}

/// kGrouped: several value heads to a query/key head; else the scores die with the masks' use.
template <class T, int K, bool kGrouped>
__global__ void __launch_bounds__(kPrepareThreads, K == 256 ? 3 : 4)
    prepare(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
            const __grid_constant__ PrepareParams params) {
  extern __shared__ __align__(1024) char memory[];
  auto& shared = *reinterpret_cast<PrepareShared<K>*>(memory);
  auto& after = shared.after;
  ChunkVectors& vectors = after.vectors;
  const ItemOrder& order = params.order;
  const int members = kGrouped ? params.group : 1;
  ptx::wait_for_dependencies();  // launched early: on the chunk table
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    shared.items[0] = order.item(static_cast<int>(blockIdx.x));
    shared.unpublished = -1;
    shared.helps_only = false;
    if (on_helper(order)) {
      atomicAdd(&params.progress->helpers, 1u);
    }
    ptx::mbarrier_init(&shared.loaded, 1);
    for (uint64_t& row : shared.handed_on) {
      ptx::mbarrier_init(&row, 32);
    }
    ptx::mbarrier_init_fence();
    shared.chunks[0] = params.chunks[shared.items[0].entry];
  }
  __syncthreads();
  fetch_gates(shared.gates[0], params, shared.chunks[0], shared.items[0].key_head * params.group,
              static_cast<int>(threadIdx.x) / 32, static_cast<int>(threadIdx.x) % 32);
  for (int buffer = 0; shared.items[buffer].entry >= 0; buffer ^= 1) {
    const int thread = ptx::fresh_thread_index();
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int key_head = shared.items[buffer].key_head;
    const Chunk& chunk = shared.chunks[buffer];
    ChunkGates& gates = shared.gates[buffer];
    uint32_t ticket = 0;
    if (warp == 0 && ptx::elect_one()) {
      ptx::store_wait_read<0>();  // the record before has left shared memory
      ptx::mbarrier_arrive_expect(&shared.loaded, 2 * (K / 64) * ptx::kBoxBytes);
      const int token = static_cast<int>(chunk.token);
      for (int box = 0; box < K / 64; ++box) {
        ptx::tma_load(shared.tiles[box][0], &q_map, &shared.loaded, box * 64, key_head, token);
        ptx::tma_load(shared.tiles[box][1], &k_map, &shared.loaded, box * 64, key_head, token);
      }
      ticket = draw_ticket(shared, params);
    }
    float scores[kChunk];  // (Q K^T)^T, then K K^T
    for (int member = 0; member < members; ++member) {
      const int head = key_head * params.group + member;

      // 1. The masks.
      if (member > 0) {
        fetch_gates(gates, params, chunk, head, warp, lane);
      }
      ptx::async_copy_wait();
      __syncwarp();
      local_masks(shared.masks, gates, warp, lane);
      __syncthreads();
      end_rows(shared.masks, thread);

      // 2. The scores.
      if (member == 0) {
        ptx::mbarrier_wait(&shared.loaded, buffer);
        ptx::wgmma_fence();
#pragma unroll
        for (int step = 0; step < K / 16; ++step) {
          const uint32_t at = static_cast<uint32_t>(step % 4 * 32);
          const auto& boxes = shared.tiles[step / 4];
          ptx::wgmma_sa<T, ptx::Major::kK, ptx::Major::kK>(
              scores, ptx::descriptor_k(ptx::shared_address(boxes[1]) + at),
              ptx::descriptor_k(ptx::shared_address(boxes) + at), step != 0);
        }
        ptx::wgmma_commit();
        query_norms<T>(shared, chunk.length, params.l2norm, warp, lane);
        ptx::wgmma_wait<0>();
        ptx::wgmma_touch(scores);
        key_norms(shared, scores, chunk.length, params.l2norm, warp, lane);
      } else if (warp == 0 && ptx::elect_one()) {
        publish_last(shared, params);  // the record of the member before has left shared memory
      }
      __syncthreads();  // and the tiles are read: what follows may overwrite them
      SplitBlock N[kBlocks - 1];
      mask_keys(shared, gates, scores, N, warp, lane);
      __syncwarp();  // a warp inverts the block of its own rows

      // 3. The inverse, and a look ahead: gates of the next item, its q and k to L2.
      InverseRow T_row;
      invert_rows(T_row, N, after.diagonal[warp], after.handed, shared.handed_on,
                  (buffer * members + member) & 1, warp, lane);
      if (member == 0 && warp == 0 && ptx::elect_one()) {  // the warp that has the least to invert
        publish_last(shared, params);
        const Item next = ticket_item(shared, params, ticket);
        shared.items[buffer ^ 1] = next;
        if (next.entry >= 0) {
          fetch_chunk(shared.chunks[buffer ^ 1], params.chunks + next.entry);
        }
      }
      mask_queries(shared, gates, scores, params.scale, warp, lane);
      if (thread < kChunk) {
        write_vectors(vectors, shared.masks, gates, shared.rq[thread], shared.rk[thread],
                      params.scale, thread);
        const float write = largest_of_warp(fmaxf(vectors.g[thread], vectors.n[thread]));
        if (lane == 0) {
          shared.largest_write[warp] = write;
        }
      }
      measure_rows(shared, T_row, chunk.length, warp, lane);
      ptx::async_copy_wait();  // the next chunk
      __syncthreads();
      if (member == 0) {
        const Item next = shared.items[buffer ^ 1];
        if (next.entry >= 0) {
          const Chunk& ahead = shared.chunks[buffer ^ 1];
          fetch_gates(shared.gates[buffer ^ 1], params, ahead, next.key_head * params.group, warp,
                      lane);
          if (warp == 0 && ptx::elect_one()) {
            const int token = static_cast<int>(ahead.token);
            for (int box = 0; box < K / 64; ++box) {
              ptx::tma_prefetch(&q_map, box * 64, next.key_head, token);
              ptx::tma_prefetch(&k_map, box * 64, next.key_head, token);
            }
          }
        }
      }

      // 4. To fp16.
      round_record(shared, T_row, thread);
      ptx::fence_async_shared();
      __syncthreads();
      if (warp == 0 && ptx::elect_one()) {
        const int64_t record =
            int64_t{shared.items[buffer].entry} * (int64_t{order.H} * params.group) + head;
        char* to = params.records + record * kRecordBytes;
        ptx::bulk_store(to + kRecordT, after.T, ptx::kBoxBytes);
        ptx::bulk_store(to + kRecordPGD, after.PGD, ptx::kBoxBytes);
        ptx::bulk_store(to + kRecordVectors, &vectors, sizeof(ChunkVectors));
        ptx::store_commit();
        shared.unpublished = static_cast<int>(record);
      }
    }
  }
  if (threadIdx.x < 32 && ptx::elect_one()) {
    publish_last(shared, params);
  }
}

}  // namespace mdn::kernels::cuda::hopper
