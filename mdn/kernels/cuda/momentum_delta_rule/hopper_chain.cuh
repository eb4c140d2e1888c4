// Backward pass, kernel 2 of 3: the chain, from the last chunk to the first. Writes the gradients
// of the states that each chunk ends with, dV, and the gradients of the initial states. It needs
// neither the states nor R, so it may run beside kernel 1, whose layout of work it shares: dS^T and
// dM^T stay in fp32 accumulators. Per chunk, with PGD, T' and the vectors of the record:
//
//     dS^T, dM^T -> boxes -> global memory and X_S = dS^T K^T, X_M = dM^T K^T
//     Y^T = dO^T PGD + X_S diag(g rk) - X_M diag(n rk)
//     dW^T = Y^T T'                                     (the power of two in T' and PGD cancels)
//     dM^T = m dM^T - b_C dS^T - (dO^T diag(b)) Q + (dW^T diag(c)) K
//     dS^T = a_C dS^T + (dO^T diag(a)) Q - (dW^T diag(e)) K
//
// The operands of the first two products with fp16 matrices, dO and Y, get a power of two for each
// warp's 16 value channels, taken from their largest element: gradients of any size keep fp16's
// precision.
//
// Three rings of buffers, each released as soon as its last reader is done: keys with the vectors,
// queries, and the rest (dO, T', PGD).
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_progress.cuh"
#include "mdn/kernels/cuda/ptx/thread.cuh"

namespace mdn::kernels::cuda::backward_pass {

template <int kK, int kBoxesV, bool kMomentum>
struct ChainShared {
  using S = Split<kK, kBoxesV, kMomentum>;
  static constexpr int kKeyStages = 2;
  static constexpr int kQueryStages = kK == 256 ? 1 : 2;
  static constexpr int kRestStages = kK == 256 ? 1 : 2;
  static constexpr int kRestBoxes = S::kBoxesV + 2;  // dO, T, PGD
  static constexpr int kKeys = 0;
  static constexpr int kQueries = kKeys + kKeyStages * S::kBoxesK * kBox;
  static constexpr int kRest = kQueries + kQueryStages * S::kBoxesK * kBox;
  static constexpr int kStates = kRest + kRestStages * kRestBoxes * kBox;
  // dV on its way out; with K = 256 in the place of half 0's sums, which have been read by then.
  static constexpr bool kOwnDV = S::kHalves == 1;
  static constexpr int kOwn = kStates + S::kConsumers * S::kStates * S::kWarpgroupBoxesK * kBox;
  static constexpr int kVectors = kOwn + (kOwnDV ? S::kBoxesV * kBox : 0);
  static constexpr int kChunks = kVectors + kKeyStages * kVectorBytes;  // first token, length
  static constexpr int kExchange = kChunks + kKeyStages * 8;
  static constexpr int kDV = kOwnDV ? kOwn : kExchange;
  static constexpr int kBarriers = kExchange + (S::kHalves == 2 ? 2 * 4096 * 4 : 0);
  static constexpr int kBarrierCount = 2 * (kKeyStages + kQueryStages + kRestStages);
  static constexpr int kOutgoing = kBarriers + kBarrierCount * 8;  // a warpgroup's each
  static constexpr int kBytes =
      kOutgoing + S::kConsumers * static_cast<int>(sizeof(Outgoing)) + 1024;
};

/// Full and empty barriers of the three rings.
template <int kK, int kBoxesV, bool kMomentum>
struct ChainBarriers {
  using L = ChainShared<kK, kBoxesV, kMomentum>;
  uint64_t* first;
  __device__ __forceinline__ uint64_t* keys(int stage) const { return first + stage; }
  __device__ __forceinline__ uint64_t* queries(int stage) const {
    return first + L::kKeyStages + stage;
  }
  __device__ __forceinline__ uint64_t* rest(int stage) const {
    return first + L::kKeyStages + L::kQueryStages + stage;
  }
  static constexpr int kEmpty = L::kKeyStages + L::kQueryStages + L::kRestStages;
};

/// What a block of the chain walks, from the last chunk to the first, in shared memory: chunk table
/// entries, and the head's [V, K] gradients of the states that it starts and ends with.
struct ChainWork {
  int first_entry;
  int last_entry;
  const float* from[2];  // S, M; null: zeros
  float* to[2];          // null: not wanted
  __device__ __forceinline__ int first() const { return first_entry; }
  __device__ __forceinline__ int last() const { return last_entry; }
  __device__ __forceinline__ const float* from_S() const { return from[0]; }
  __device__ __forceinline__ const float* from_M() const { return from[1]; }
  __device__ __forceinline__ float* to_S() const { return to[0]; }
  __device__ __forceinline__ float* to_M() const { return to[1]; }
};

/// The same of a sequence that is not cut, from the arguments, which takes no registers either:
/// what ChainWork does with K = 256 makes the assembler spill.
struct WholeChainWork {
  const Arguments& args;
  int sequence;
  int head;
  int64_t size;  // of the head's states
  __device__ __forceinline__ int first() const { return args.begin[sequence]; }
  __device__ __forceinline__ int last() const { return args.begin[sequence + 1]; }
  template <class Float>
  __device__ __forceinline__ Float* of_head(Float* x) const {
    return x == nullptr ? nullptr : x + (int64_t{sequence} * args.HV + head) * size;
  }
  __device__ __forceinline__ const float* from_S() const { return of_head(args.d_final_S); }
  __device__ __forceinline__ const float* from_M() const { return of_head(args.d_final_M); }
  __device__ __forceinline__ float* to_S() const { return of_head(args.d_initial_S); }
  __device__ __forceinline__ float* to_M() const { return of_head(args.d_initial_M); }
};

template <class E, int kK, int kBoxesV, bool kMomentum, class Work>
__device__ __forceinline__ void chain_producer(const Arguments& args, uint8_t* shared,
                                               ChainBarriers<kK, kBoxesV, kMomentum> barriers,
                                               const Work& work, int head, int tile) {
  using S = Split<kK, kBoxesV, kMomentum>;
  using L = ChainShared<kK, kBoxesV, kMomentum>;
  constexpr int kEmpty = ChainBarriers<kK, kBoxesV, kMomentum>::kEmpty;
  Ring<L::kKeyStages> keys;
  Ring<L::kQueryStages> queries;
  Ring<L::kRestStages> rest;
  const int first = work.first();
  int entry = work.last() - 1;
  if (entry < first) {
    return;
  }
  // Chunks of a sequence follow each other, and all but the last are whole.
  int token = static_cast<int>(args.chunks[entry].token);
  int length = args.chunks[entry].length;
  for (; entry >= first; --entry, token -= kChunk, length = kChunk) {
    const uint8_t* record =
        args.records + (static_cast<int64_t>(entry) * args.HV + head) * kRecordBytes;

    uint64_t* barrier = barriers.keys(keys.stage);
    ptx::mbarrier_wait(barrier + kEmpty, keys.phase ^ 1);
    reinterpret_cast<int2*>(shared + L::kChunks)[keys.stage] = {token, length};
    ptx::mbarrier_arrive_expect(barrier, S::kBoxesK * kBox + kVectorBytes);
    uint8_t* to = shared + L::kKeys + keys.stage * S::kBoxesK * kBox;
    for (int i = 0; i < S::kBoxesK; ++i) {
      ptx::tma_load(to + i * kBox, &args.k, barrier, 64 * i, head / args.group, token);
    }
    ptx::bulk_load(shared + L::kVectors + keys.stage * kVectorBytes, record + kRecordVectors,
                   kVectorBytes, barrier);
    keys.next();

    barrier = barriers.rest(rest.stage);
    ptx::mbarrier_wait(barrier + kEmpty, rest.phase ^ 1);
    ptx::mbarrier_arrive_expect(barrier, L::kRestBoxes * kBox);
    to = shared + L::kRest + rest.stage * L::kRestBoxes * kBox;
    for (int i = 0; i < S::kBoxesV; ++i) {
      ptx::tma_load(to + i * kBox, &args.d_o, barrier, 64 * (tile * S::kBoxesV + i), head, token);
    }
    static_assert(kRecordPGD == kRecordT + kBox);
    ptx::bulk_load(to + S::kBoxesV * kBox, record + kRecordT, 2 * kBox, barrier);
    rest.next();

    barrier = barriers.queries(queries.stage);
    ptx::mbarrier_wait(barrier + kEmpty, queries.phase ^ 1);
    ptx::mbarrier_arrive_expect(barrier, S::kBoxesK * kBox);
    to = shared + L::kQueries + queries.stage * S::kBoxesK * kBox;
    for (int i = 0; i < S::kBoxesK; ++i) {
      ptx::tma_load(to + i * kBox, &args.q, barrier, 64 * i, head / args.group, token);
    }
    queries.next();
  }
}

/// A operand of four slices: box^T times sign * vector[token], from a box [tokens, 64 columns].
template <class E>
__device__ __forceinline__ void scaled_rows(uint32_t (&a)[4][4], uint32_t lane_address,
                                            const float* vector, float sign) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t words[4];
    ptx::ldmatrix_trans(words, lane_address + 2 * i * 1024);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float2 f = parts::column_pair(vector, 2 * i + j);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 x = ptx::unpack<E>(words[2 * j + h]);
        a[i][2 * j + h] = ptx::pack<E>(sign * f.x * x.x, sign * f.y * x.y);
      }
    }
  }
}

/// A operand of four slices: d times sign * vector[token].
template <class E>
__device__ __forceinline__ void scaled_columns(uint32_t (&a)[4][4], const float (&d)[32],
                                               const float* vector, float sign) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int at = 8 * i + 4 * j;
      const float2 f = parts::column_pair(vector, 2 * i + j);
      a[i][2 * j] = ptx::pack<E>(sign * f.x * d[at], sign * f.y * d[at + 1]);
      a[i][2 * j + 1] = ptx::pack<E>(sign * f.x * d[at + 2], sign * f.y * d[at + 3]);
    }
  }
}

/// d += a times 64 rows of boxes, one group.
template <class E, int kRegisters>
__device__ __forceinline__ void add_product(float (&d)[kRegisters], const uint32_t (&a)[4][4],
                                            uint32_t box) {
  ptx::wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    ptx::wgmma_ra<E, ptx::Major::kMN>(d, a[i], ptx::descriptor_mn(box + 2048 * i, kBox));
  }
  ptx::wgmma_commit();
}

/// kWrites false: nothing but the gradients of the states that the walk ends with.
template <class E, int kK, int kBoxesV, bool kMomentum, bool kWrites, class Work>
__device__ __forceinline__ void chain_consumer(const Arguments& args, uint8_t* shared,
                                               ChainBarriers<kK, kBoxesV, kMomentum> barriers,
                                               const Work& work, int head, int tile) {
  using Sp = Split<kK, kBoxesV, kMomentum>;
  using L = ChainShared<kK, kBoxesV, kMomentum>;
  constexpr int kEmpty = ChainBarriers<kK, kBoxesV, kMomentum>::kEmpty;
  constexpr int kRegisters = Sp::kWarpgroupK / 2;
  // Known to be the same in a warp where that saves registers (it does not with K = 256).
  const int warpgroup = Sp::kHalves == 2
                            ? static_cast<int>(threadIdx.x) / 128
                            : __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 128, 0);
  const int half = Sp::kHalves == 2 ? warpgroup : 0;
  const int box_v = Sp::kHalves == 2 ? 0 : warpgroup;
  const int barrier_id = 1 + warpgroup;
  const int v_box = tile * Sp::kBoxesV + box_v;

  float S[kRegisters];  // dS^T, dM^T
  [[maybe_unused]] float M[kRegisters];
  // This thread's first element of the head's [V, K] states.
  const auto state_offset = [&] {
    const int at = ptx::fresh_thread_index() % 128;
    const int v = 64 * v_box + 16 * (at / 32) + at % 32 / 4;
    return v * kK + half * Sp::kWarpgroupK + 2 * (at % 4);
  };
  load_state(S, work.from_S() == nullptr ? nullptr : work.from_S() + state_offset(), kK);
  if constexpr (kMomentum) {
    load_state(M, work.from_M() == nullptr ? nullptr : work.from_M() + state_offset(), kK);
  }

  uint8_t* states = shared + L::kStates + warpgroup * Sp::kStates * Sp::kWarpgroupBoxesK * kBox;
  const uint32_t S_box = ptx::shared_address(states);
  [[maybe_unused]] const uint32_t M_box = S_box + Sp::kWarpgroupBoxesK * kBox;
  float* exchange = reinterpret_cast<float*>(shared + L::kExchange);

  Ring<L::kKeyStages> keys;
  Ring<L::kQueryStages> queries;
  Ring<L::kRestStages> rest;
  const int first = work.first();
  for (int entry = work.last() - 1; entry >= first; --entry) {
    // Read anew for each chunk, so that no address is spilled across the loop.
    const int thread = ptx::fresh_thread_index() % 128;
    const int warp = thread / 32;
    const int lane = thread % 32;
    const int column = 2 * (lane % 4);
    const uint32_t k_box = ptx::shared_address(shared + L::kKeys) +
                           (keys.stage * Sp::kBoxesK + half * Sp::kWarpgroupBoxesK) * kBox;
    const uint32_t q_box = ptx::shared_address(shared + L::kQueries) +
                           (queries.stage * Sp::kBoxesK + half * Sp::kWarpgroupBoxesK) * kBox;
    const uint32_t rest_box =
        ptx::shared_address(shared + L::kRest) + rest.stage * L::kRestBoxes * kBox;
    const uint32_t o_lane = parts::transposed_lane(rest_box + box_v * kBox, warp, lane);
    const uint32_t t_box = rest_box + Sp::kBoxesV * kBox;
    const uint32_t pgd_box = t_box + kBox;
    const auto* vectors =
        reinterpret_cast<const ChunkVectors*>(shared + L::kVectors + keys.stage * kVectorBytes);

    // The gradients of the chunk's end states, rounded: to shared memory, from there to global.
    Outgoing& outgoing = outgoing_of(shared + L::kOutgoing);
    static_assert(L::kKeyStages == 2);  // so that the stage is the chunk's parity
    if constexpr (kWrites) {
      ptx::mbarrier_wait(&outgoing.empty, keys.stage ^ 1);
    } else {
      ptx::named_barrier(barrier_id, 128);
    }
    store_state_boxes<E, Sp>(S_box, M_box, warp, lane, S, M);
    ptx::fence_async_shared();
    if constexpr (kWrites) {
      ptx::mbarrier_arrive(&outgoing.full);
    }
    ptx::named_barrier(barrier_id, 128);

    // X_S = dS^T K^T, X_M = dM^T K^T
    float X[32];
    float Y[32];  // X_M, then Y and dW
    ptx::mbarrier_wait(barriers.keys(keys.stage), keys.phase);
    key_products<E, Sp>(X, Y, S_box, M_box, k_box);
    // Meanwhile dO as an fp16 operand.
    ptx::mbarrier_wait(barriers.rest(rest.stage), rest.phase);
    uint32_t a[4][4];
    float o_inverse;
    {
      float o[32];
      parts::load_transposed<E>(o, o_lane);
      half_operand(a, o, o_inverse);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(X);
    if constexpr (kMomentum) {
      ptx::wgmma_touch(Y);
    }
    // X = X_S diag(g rk) - X_M diag(n rk)
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 rk = parts::column_pair(vectors->rk + column, j);
      const float2 g = parts::column_pair(vectors->g + column, j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = 4 * j + 2 * i;
        if constexpr (kMomentum) {
          const float2 n = parts::column_pair(vectors->n + column, j);
          X[at] = rk.x * (g.x * X[at] - n.x * Y[at]);
          X[at + 1] = rk.y * (g.y * X[at + 1] - n.y * Y[at + 1]);
        } else {
          X[at] *= rk.x * g.x;
          X[at + 1] *= rk.y * g.y;
        }
      }
    }
    // Y = dO^T PGD
    ptx::wgmma_touch(Y);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::wgmma_ra<__half, ptx::Major::kMN>(Y, a[i], ptx::descriptor_mn(pgd_box + 2048 * i, kBox),
                                             i > 0);
    }
    ptx::wgmma_commit();
    if constexpr (Sp::kHalves == 2) {
      add_other_half(X, exchange, half, thread);
    }
    const float a_end = vectors->a_end;
    [[maybe_unused]] const float b_end = vectors->b_end;
    [[maybe_unused]] const float m_end = vectors->m_end;
#pragma unroll
    for (int i = 0; i < kRegisters; ++i) {
      if constexpr (kMomentum) {
        M[i] = m_end * M[i] - b_end * S[i];
      }
      S[i] *= a_end;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(Y);
    float y_inverse;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      X[i] += o_inverse * Y[i];
    }
    half_operand(a, X, y_inverse);
    // dW^T = Y^T T'
    ptx::wgmma_touch(Y);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      ptx::wgmma_ra<__half, ptx::Major::kMN>(Y, a[i], ptx::descriptor_mn(t_box + 2048 * i, kBox),
                                             i > 0);
    }
    ptx::wgmma_commit();
    // dS^T += (dO^T diag(a)) Q - (dW^T diag(e)) K;  dM^T += -(dO^T diag(b)) Q + (dW^T diag(c)) K.
    // The operand of a group is made while the one before is at work, in the registers of the one
    // before that.
    uint32_t w[4][4];
    uint32_t x[4][4];
    ptx::mbarrier_wait(barriers.queries(queries.stage), queries.phase);
    scaled_rows<E>(w, o_lane, vectors->a + column, 1.0F);
    ptx::wgmma_touch(S);
    add_product<E>(S, w, q_box);
    ptx::wgmma_wait<1>();  // dW is there
    ptx::wgmma_touch(Y);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      Y[i] *= y_inverse;
    }
    scaled_columns<E>(x, Y, vectors->e + column, -1.0F);
    add_product<E>(S, x, k_box);
    ptx::wgmma_wait<1>();
    if constexpr (kMomentum) {
      scaled_rows<E>(w, o_lane, vectors->b + column, -1.0F);
      ptx::wgmma_touch(M);
      add_product<E>(M, w, q_box);
      ptx::wgmma_wait<1>();
      scaled_columns<E>(x, Y, vectors->c + column, 1.0F);
      add_product<E>(M, x, k_box);
      ptx::wgmma_wait<1>();
    }
    ptx::mbarrier_arrive(barriers.queries(queries.stage) + kEmpty);
    ptx::mbarrier_arrive(barriers.rest(rest.stage) + kEmpty);
    if constexpr (kWrites) {  // dV = dW, through shared memory for whole rows of 128 bytes
      uint8_t* dv = shared + L::kDV + box_v * kBox;
      if constexpr (!L::kOwnDV) {
        ptx::named_barrier(6, 256);  // half 0's sums have been read
      }
      if (half == 0) {
        parts::store_transposed<E>(parts::transposed_lane(ptx::shared_address(dv), warp, lane), Y);
      }
      // Half 1 has nothing to wait for, but racecheck takes threads that have been at different
      // numbers of barriers for unordered.
      ptx::named_barrier(barrier_id, 128);
      if (half == 0) {
        const int2 chunk = reinterpret_cast<const int2*>(shared + L::kChunks)[keys.stage];
        const int length = chunk.y;
        uint8_t* out = static_cast<uint8_t*>(args.d_v_rows) +
                       ((int64_t{chunk.x} * args.HV + head) * args.V + 64 * v_box) * 2;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * i + thread / 8;
          const int unit = thread % 8;
          const uint4 u =
              *reinterpret_cast<const uint4*>(dv + row * 128 + ((unit ^ (row % 8)) * 16));
          if (row < length) {
            *reinterpret_cast<uint4*>(out + static_cast<int64_t>(row) * args.HV * args.V * 2 +
                                      unit * 16) = u;
          }
        }
      }
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_touch(S);
    if constexpr (kMomentum) {
      ptx::wgmma_touch(M);
    }
    ptx::mbarrier_arrive(barriers.keys(keys.stage) + kEmpty);
    keys.next();
    queries.next();
    rest.next();
  }
  Outgoing& outgoing = outgoing_of(shared + L::kOutgoing);
  if constexpr (kWrites) {
    ptx::mbarrier_wait(&outgoing.empty, keys.stage ^ 1);
    ptx::mbarrier_arrive(&outgoing.full);  // for the last chunk's dV
  }
  if (work.to_S() != nullptr) {
    store_state(work.to_S() + state_offset(), S, kK);
  }
  if constexpr (kMomentum) {
    if (work.to_M() != nullptr) {
      store_state(work.to_M() + state_offset(), M, kK);
    }
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
