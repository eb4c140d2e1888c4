// Into how many segments long sequences are cut, and the memory of their maps.
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"

#include <algorithm>

#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/momentum_delta_rule/segment_states.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {
namespace {

// Microseconds, measured on an H200. A chunk of the walk with outputs (one tile a block) and of the
// maps (two tiles); a step from start to start with all blocks at once; what more launches cost; an
// item of prepare, which has nowhere to hide beside the maps.
constexpr double kWalkChunkTime = 2.2;
constexpr double kMapChunkTime = 2.4;
constexpr double kShareWithoutMomentum = 0.6;  // of these
constexpr double kStepTime = 8.5;              // 256 channels of the states
constexpr double kStepTimeSmall = 3.5;         // 128 or less
constexpr double kLaunchTime = 10.0;
constexpr double kPrepareItemTime = 4.0;  // on a whole multiprocessor
constexpr double kLargestShare = 0.95;    // of the uncut time that a cut one may take
constexpr int kLargestCount = 64;

int64_t value_tiles(const MomentumDeltaRuleProblem& problem) {
  return problem.V / 64;
}

/// Channels of the states.
int64_t state_channels(const MomentumDeltaRuleProblem& problem) {
  return (problem.momentum ? 2 : 1) * problem.K;
}

/// Rows of a SegmentMemory.
int64_t segment_rows(const MomentumDeltaRuleProblem& problem, int segments) {
  return problem.N * segments * problem.HV;
}

SegmentMemory take_memory(const MomentumDeltaRuleProblem& problem, int segments, Arrays& arrays) {
  const int64_t rows = segment_rows(problem, segments);
  const int64_t states = rows * problem.V * problem.K;
  const int64_t X = state_channels(problem);
  SegmentMemory result;
  result.start_S = arrays.take<float>(states);
  if (problem.momentum) {
    result.start_M = arrays.take<float>(states);
  }
  result.maps = arrays.take<float>(rows * X * X);
  result.norms = arrays.take<float>(rows * X * 2);
  result.unknown = arrays.take<uint32_t>(problem.N * problem.HV);
  return result;
}

SegmentEnds take_ends(const MomentumDeltaRuleProblem& problem, int segments, Arrays& arrays) {
  const int64_t states = segment_rows(problem, segments) * problem.V * problem.K;
  SegmentEnds result;
  result.end_S = arrays.take<float>(states);
  if (problem.momentum) {
    result.end_M = arrays.take<float>(states);
  }
  result.unknown = arrays.take<uint32_t>(problem.N * problem.HV);
  return result;
}

}  // namespace

int64_t segment_map_blocks(const MomentumDeltaRuleProblem& problem, int segments) {
  const int64_t values = value_tiles(problem);
  const int64_t all = values + state_channels(problem) / 64;
  // The first segment has no A, the last one no map at all.
  return problem.N * problem.HV * ((values + 1) / 2 + (segments - 2) * ((all + 1) / 2));
}

double segment_map_chunk_time(bool momentum) {
  return kMapChunkTime * (momentum ? 1.0 : kShareWithoutMomentum);
}

int choose_segments(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  if (problem.cu_seqlens != nullptr || problem.K > 128) {
    return 1;
  }
  const int64_t chunks = (problem.T + kChunk - 1) / kChunk;
  const double share = problem.momentum ? 1.0 : kShareWithoutMomentum;
  const auto time = [&](int segments) {
    const int64_t whole = (chunks + segments - 1) / segments;
    const auto length = static_cast<double>(whole);
    if (segments == 1) {
      return length * kWalkChunkTime * share;
    }
    const auto heads = static_cast<double>(problem.N * problem.HV);
    const double step_blocks = heads * static_cast<double>(problem.V) / kSegmentStateChannels;
    const double step = (state_channels(problem) > 128 ? kStepTime : kStepTimeSmall) *
                        std::max(1.0, step_blocks / device.multiprocessors);
    const double prepare =
        static_cast<double>(chunks) * heads * kPrepareItemTime / device.multiprocessors;
    return length * (kWalkChunkTime + kMapChunkTime) * share + (segments - 2) * step + prepare +
           kLaunchTime;
  };
  int best = 1;
  for (int segments = 2; segments <= kLargestCount && segments <= chunks; ++segments) {
    const int64_t walk_blocks = problem.N * problem.HV * value_tiles(problem) * segments;
    if (walk_blocks > device.multiprocessors ||
        segment_map_blocks(problem, segments) > device.multiprocessors) {
      break;
    }
    if (time(segments) < time(best) && time(segments) < kLargestShare * time(1)) {
      best = segments;
    }
  }
  return best;
}

size_t segment_bytes(const MomentumDeltaRuleProblem& problem, int segments) {
  Arrays arrays(nullptr);
  if (segments > 1) {
    take_memory(problem, segments, arrays);
  }
  return arrays.bytes();
}

SegmentMemory segment_memory(const MomentumDeltaRuleProblem& problem, int segments, char* memory) {
  Arrays arrays(memory);
  return segments > 1 ? take_memory(problem, segments, arrays) : SegmentMemory{};
}

size_t segment_ends_bytes(const MomentumDeltaRuleProblem& problem, int segments) {
  Arrays arrays(nullptr);
  if (segments > 1) {
    take_ends(problem, segments, arrays);
  }
  return arrays.bytes();
}

SegmentEnds segment_ends(const MomentumDeltaRuleProblem& problem, int segments, char* memory) {
  Arrays arrays(memory);
  return segments > 1 ? take_ends(problem, segments, arrays) : SegmentEnds{};
}

void clear_unknown(const MomentumDeltaRuleProblem& problem, uint32_t* unknown,
                   cudaStream_t stream) {
  const auto words = static_cast<size_t>(problem.N * problem.HV);
  MDN_CUDA_CHECK(cudaMemsetAsync(unknown, 0, words * sizeof(uint32_t), stream));
}

}  // namespace mdn::kernels::cuda
