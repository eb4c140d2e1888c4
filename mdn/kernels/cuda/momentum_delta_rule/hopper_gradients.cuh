// Backward pass, kernel 3 of 3: what is parallel over chunks. Reads the states that a chunk starts
// with, the gradients of those that it ends with, R and dW; writes dq, dk and the gates' gradients.
// No atomics: a block owns all of a chunk's sums.
//
// A block walks over (chunk, value head) items with three consumer warpgroups. It takes the key
// channels in tiles of 64; for each tile it sums over the value channels:
//
//     warpgroup 0 ("o")   oS = dO S0^T, oM = dO M0^T;   oR = dO R^T (first tile), P = Q K^T
//     warpgroup 1 ("w")   wS = dW S0^T, wM = dW M0^T;   F = dW R^T  (first tile), K K^T
//     warpgroup 2 ("r")   rS = R dS^T,  rM = R dM^T
//
// q and k are the rows as given; 1/|q_t| and 1/|k_t| are factors of the masks and vectors, so that
// all products see the raw rows and the results are the gradients of the raw rows but for the
// derivative of the norms, which is taken off here in the last tile of key channels, when a row's
// product with its gradient is known, and by a kernel of its own in the tiles before
// (hopper_finish_rows.cuh). With rq, rk these factors:
//
//     dP[t,j] = scale rq_t rk_j eta_j oR[t,j] G[t,j]   (j <= t)
//     Z[t,j]  = -rk_t rk_j eta_j F[t,j] H[t,j]         (j < t)
//     dq = a oS - b oM + dP K;   dk = dP^T Q + (Z + Z^T) K - e wS + c wM + eta rk (g rS - n rM)
//
// Without momentum what has an M in its name is missing.
//
// The fourth warpgroup keeps everything serial away from the consumers: its first warp feeds the
// copy engine, the other three make the masks of the next item and run the reverse recurrence over
// the masks of the last one. While copies fill the memory system an ordinary load takes
// microseconds, so consumers touch global memory only to write.
#pragma once

#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_progress.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_gradients_consumer.cuh"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_gradients_masks.cuh"

namespace mdn::kernels::cuda::backward_pass {

/// One thread feeds the copy engine. Whether the next item is there is asked while copies of this
/// one are on their way: an answer takes as long as they do.
template <bool kMomentum>
__device__ __forceinline__ void gradients_producer(const Arguments& args, uint8_t* shared,
                                                   GradientsSmall& small) {
  using L = GradientsShared<kMomentum>;
  const int tiles = args.K / 64;
  const int steps = args.V / 64;
  const uint32_t parts = parts_of_item(args);
  Ring<L::kStages> ring;
  Ring<1> qk;
  Ring<2> vectors;
  bool ready = false;
  for (uint32_t n = 0;; ++n) {
    ptx::mbarrier_wait(&small.work_full[n % 4], n / 4 & 1);
    if (small.work[n % 4].length == 0) {
      ptx::wait_for_dependencies();  // this kernel must not end before the recurrences
      return;
    }
    const int64_t entry = small.work[n % 4].entry;
    const int head = small.work[n % 4].head;
    const int token = static_cast<int>(small.work[n % 4].token);
    const int64_t item = small.work[n % 4].index;
    ptx::mbarrier_wait(&small.vectors_empty[vectors.stage], vectors.phase ^ 1);
    ptx::mbarrier_arrive_expect(&small.vectors_full[vectors.stage], kVectorBytes);
    ptx::bulk_load(shared + L::kVectors + vectors.stage * kVectorBytes,
                   args.records + (entry * args.HV + head) * kRecordBytes + kRecordVectors,
                   kVectorBytes, &small.vectors_full[vectors.stage]);
    vectors.next();
    while (!ready) {
      ready = has_parts(args.ready + item, parts);
    }
    for (int tile = 0; tile < tiles; ++tile) {
      for (int step = 0; step < steps; ++step) {
        uint8_t* stage = shared + L::kStage + ring.stage * L::kStageBoxes * kBox;
        uint64_t* barrier = &small.full[ring.stage];
        ptx::mbarrier_wait(&small.empty[ring.stage], ring.phase ^ 1);
        ptx::mbarrier_arrive_expect(barrier, L::kStageBoxes * kBox);
        const int64_t at = ((item * steps + step) * tiles + tile) * kBox;
        ptx::bulk_load(stage + L::kBoxS * kBox, args.S + at, kBox, barrier);
        ptx::bulk_load(stage + L::kBoxDS * kBox, args.dS + at, kBox, barrier);
        if constexpr (kMomentum) {
          ptx::bulk_load(stage + L::kBoxM * kBox, args.M + at, kBox, barrier);
          ptx::bulk_load(stage + L::kBoxDM * kBox, args.dM + at, kBox, barrier);
        }
        ptx::tma_load(stage + L::kBoxDO * kBox, &args.d_o, barrier, 64 * step, head, token);
        ptx::tma_load(stage + (L::kBoxDO + 1) * kBox, &args.d_v, barrier, 64 * step, head, token);
        ptx::bulk_load(stage + L::kBoxR * kBox, args.R + (item * steps + step) * kBox, kBox,
                       barrier);
        ring.next();
        if (step == (steps == 1 ? 0 : 1)) {  // the ring is full now: not in its way
          ptx::mbarrier_wait(&small.qk_empty, qk.phase ^ 1);
          ptx::mbarrier_arrive_expect(&small.qk_full, 2 * kBox);
          ptx::tma_load(shared + L::kQK, &args.q, &small.qk_full, 64 * tile, head / args.group,
                        token);
          ptx::tma_load(shared + L::kQK + kBox, &args.k, &small.qk_full, 64 * tile,
                        head / args.group, token);
          qk.next();
          if (tile == 0) {
            ptx::mbarrier_wait(&small.work_full[(n + 1) % 4], (n + 1) / 4 & 1);
            const GradientsWork& next = small.work[(n + 1) % 4];
            ready = next.length != 0 && has_parts(args.ready + next.index, parts);
          }
        }
      }
    }
  }
}

template <class E, class Out, bool kMomentum>
__global__ void __launch_bounds__(kGradientThreads, 1)
    gradients_kernel(const __grid_constant__ Arguments args) {
  using L = GradientsShared<kMomentum>;
  extern __shared__ uint8_t memory[];
  uint8_t* shared = memory + (1024 - ptx::shared_address(memory) % 1024) % 1024;
  auto& small = *reinterpret_cast<GradientsSmall*>(shared + L::kSmall);
  ptx::launch_dependents();
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      ptx::mbarrier_init(&small.full[i], 1);
      ptx::mbarrier_init(&small.empty[i], kConsumerThreads);
    }
    for (int i = 0; i < 2; ++i) {
      ptx::mbarrier_init(&small.vectors_full[i], 1);
      ptx::mbarrier_init(&small.vectors_empty[i], kConsumerThreads);
      ptx::mbarrier_init(&small.item_full[i], kMaskThreads);
    }
    for (uint64_t& full : small.work_full) {
      ptx::mbarrier_init(&full, 1);
    }
    ptx::mbarrier_init(&small.qk_full, 1);
    ptx::mbarrier_init(&small.qk_empty, kConsumerThreads);
    ptx::mbarrier_init(&small.terms_full, kConsumerThreads);
    ptx::mbarrier_init(&small.terms_empty, kMaskThreads);
    ptx::mbarrier_init_fence();
  }
  __syncthreads();
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  if (warpgroup == 3) {
    ptx::registers_decrease<48>();
    if (threadIdx.x >= kMaskThread) {
      gradients_masks(args, small);
    } else if (ptx::elect_one()) {
      gradients_producer<kMomentum>(args, shared, small);
    }
  } else if (warpgroup == 0) {
    ptx::registers_increase<160>();
    gradients_consumer<E, Out, 0, kMomentum>(args, shared, small);
  } else if (warpgroup == 1) {
    ptx::registers_increase<160>();
    gradients_consumer<E, Out, 1, kMomentum>(args, shared, small);
  } else {
    ptx::registers_increase<144>();
    gradients_consumer<E, Out, 2, kMomentum>(args, shared, small);
  }
}

}  // namespace mdn::kernels::cuda::backward_pass
