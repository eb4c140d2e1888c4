// The host side of the Hopper forward pass: what it supports, its memory, its two launches.
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <fmt/format.h>

#include <algorithm>

#include "mdn/kernels/cuda/momentum_delta_rule/hopper.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_saved.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"
#include "mdn/kernels/cuda/momentum_delta_rule/segment_states.h"
#include "mdn/kernels/cuda/ptx/tensor_map.h"

namespace mdn::kernels::cuda {
namespace {

constexpr int kTileChannels = 64;                  // of V, one warpgroup (K = 256: two)
constexpr double kSmallestFill = 0.7;              // of the multiprocessors, for two tiles a block
constexpr int kMostWaves = hopper::kMaxParts - 2;  // that blocks share instead
constexpr double kSmallestIdle = 1.05;             // places in all waves over blocks, for sharing
constexpr int kSharedMemory = 227 << 10;           // what a block of the recurrence may take

// Times of one item of prepare on a whole multiprocessor, and of one chunk of the recurrence there.
constexpr double kPrepareTime = 2.2;  // microseconds, measured
constexpr double kPrepareTimeSplit = 4.5;
constexpr double kChunkTime[] = {2.2, 3.8};  // one tile a block, two
constexpr double kChunkTimeSplit = 4.2;
constexpr double kShareWithoutMomentum = 0.6;  // of these, an estimate
constexpr double kLateShare = 0.85;            // of what helpers can do by then

int64_t tokens(const MomentumDeltaRuleProblem& problem) {
  return problem.B * problem.T;
}

/// Words that are 0 before prepare starts: its progress, what is there of the records, and what is
/// there of handed states.
struct Words {
  size_t handed;  // where these begin
  size_t all;
};

Words progress_words(const MomentumDeltaRuleProblem& problem, const HopperForwardConfig& config) {
  const size_t handed =
      sizeof(hopper::Progress) / 4 + static_cast<size_t>(max_chunks(problem, kChunk) * problem.HV);
  const int64_t pieces = config.shared_walks ? config.recurrence_blocks : 0;
  return {handed, handed + static_cast<size_t>(pieces * hopper::kHandingWarps)};
}

size_t progress_bytes(const MomentumDeltaRuleProblem& problem, const HopperForwardConfig& config) {
  return (progress_words(problem, config).all * 4 + 255) / 256 * 256;
}

size_t handed_bytes(const MomentumDeltaRuleProblem& problem, const HopperForwardConfig& config) {
  const int64_t channels = 2 * config.value_tiles * kTileChannels;  // of S and M
  return config.shared_walks
             ? static_cast<size_t>(config.recurrence_blocks * channels * problem.K) * sizeof(float)
             : 0;
}

/// Whether blocks share walks instead of running as waves, of which the last leaves multiprocessors
/// idle. Packed sequences are of unequal lengths, known on the device alone.
bool shares_walks(const MomentumDeltaRuleProblem& problem, const HopperForwardConfig& config,
                  int64_t SMs) {
  const int64_t blocks = config.recurrence_blocks;
  const int64_t waves = (blocks + SMs - 1) / SMs;
  const int64_t chunks = (problem.T + kChunk - 1) / kChunk;
  return problem.cu_seqlens == nullptr && config.segments == 1 && chunks > 0 && blocks > SMs &&
         waves <= kMostWaves && blocks * chunks <= INT32_MAX &&
         static_cast<double>(waves * SMs) > kSmallestIdle * static_cast<double>(blocks);
}

}  // namespace

HopperForwardConfig choose_hopper_forward(const MomentumDeltaRuleProblem& problem,
                                          const DeviceFacts& device) {
  HopperForwardConfig config;
  config.segments = choose_segments(problem, device);
  config.map_blocks = config.segments == 1 ? 0 : segment_map_blocks(problem, config.segments);
  const int64_t tiles = tile_walks(problem) * config.segments;
  const int64_t pairs = tiles / 2;  // exact where pairs can be taken
  config.split = problem.K > 128;
  if (!config.split && problem.V % (2 * kTileChannels) == 0 &&
      static_cast<double>(pairs) >= kSmallestFill * device.multiprocessors) {
    config.value_tiles = 2;
  }
  config.recurrence_blocks = tiles / config.value_tiles;

  const int64_t SMs = device.multiprocessors;
  const int64_t chunks = max_chunks(problem, kChunk);
  config.shared_walks = shares_walks(problem, config, SMs);
  if (config.shared_walks) {
    config.recurrence_blocks = SMs;
  }
  const int64_t blocks_each = config.split ? 3 : 4;  // that fit a multiprocessor
  config.prepare_items = chunks * problem.H;
  config.prepare_blocks = std::min(config.prepare_items, SMs * blocks_each);
  const bool maps = config.segments > 1;  // what runs beside prepare: the maps or the recurrence
  const int64_t blocks = maps ? config.map_blocks : config.recurrence_blocks;
  const int64_t waves = (blocks + SMs - 1) / SMs;
  config.helpers_from = static_cast<int>(waves == 0 ? SMs : (blocks + waves - 1) / waves);
  const double chunk_time =
      maps ? segment_map_chunk_time(problem.momentum)
           : (config.split ? kChunkTimeSplit : kChunkTime[config.value_tiles - 1]) *
                 (problem.momentum ? 1.0 : kShareWithoutMomentum);
  const double wave =
      chunk_time * static_cast<double>(problem.N == 0 ? 0 : chunks / (problem.N * config.segments));
  const int64_t group = problem.HV / problem.H;  // exact: HV is a multiple of H
  const double late =
      kLateShare * static_cast<double>(SMs - config.helpers_from) * wave /
      ((config.split ? kPrepareTimeSplit : kPrepareTime) * static_cast<double>(group));
  config.shared_items =
      std::max(config.prepare_blocks, config.prepare_items - static_cast<int64_t>(late));
  return config;
}

std::string describe(const HopperForwardConfig& config) {
  return fmt::format(
      "prepare {} blocks, {} of {} items late; {}recurrence {} blocks of {} tile{}{}{}",
      config.prepare_blocks, config.prepare_items - config.shared_items, config.prepare_items,
      config.segments == 1
          ? ""
          : fmt::format("{} segments, {} blocks of maps; ", config.segments, config.map_blocks),
      config.recurrence_blocks, config.value_tiles, config.value_tiles == 1 ? "" : "s",
      config.split ? ", key channels split" : "", config.shared_walks ? ", walks shared" : "");
}

size_t hopper_record_bytes(const MomentumDeltaRuleProblem& problem) {
  return static_cast<size_t>(max_chunks(problem, kChunk) * problem.HV) * kRecordBytes;
}

bool hopper_supports_forward(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  const bool dtype = problem.dtype == DType::kBFloat16 || problem.dtype == DType::kFloat16;
  const bool K = problem.K == 64 || problem.K == 128 || problem.K == 256;
  const bool V = problem.V == 64 || problem.V == 128 || problem.V == 256 || problem.V == 512;
  constexpr int64_t kLargest = (int64_t{1} << 31) - kChunk;  // coordinates and grids are 32-bit
  return device.major == 9 && device.minor == 0 && device.shared_memory >= kSharedMemory && dtype &&
         K && V && tokens(problem) < kLargest &&
         max_chunks(problem, kChunk) * problem.H < kLargest && tile_walks(problem) < kLargest;
}

size_t hopper_forward_workspace(const MomentumDeltaRuleProblem& problem,
                                const DeviceFacts& device) {
  const HopperForwardConfig config = choose_hopper_forward(problem, device);
  return chunk_table_bytes(problem, kChunk) + progress_bytes(problem, config) +
         handed_bytes(problem, config) + hopper_saved(problem, device);
}

size_t hopper_saved(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  return hopper_record_bytes(problem) + segment_bytes(problem, choose_segments(problem, device));
}

HopperForwardArguments hopper_forward_arguments(const MomentumDeltaRuleForward& call,
                                                const HopperForwardConfig& config,
                                                cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const MomentumDeltaRuleInputs& in = call.inputs;
  const int64_t count = tokens(problem);
  HopperForwardArguments arguments;
  arguments.q = ptx::make_tensor_map(problem.dtype, in.q, count, problem.H, problem.K);
  arguments.k = ptx::make_tensor_map(problem.dtype, in.k, count, problem.H, problem.K);
  arguments.v = ptx::make_tensor_map(problem.dtype, in.v, count, problem.HV, problem.V);
  char* progress = static_cast<char*>(call.workspace) + chunk_table_bytes(problem, kChunk);
  arguments.progress = reinterpret_cast<hopper::Progress*>(progress);
  const Words words = progress_words(problem, config);
  char* handed = progress + progress_bytes(problem, config);
  if (config.shared_walks) {
    arguments.handed.states = reinterpret_cast<float*>(handed);
    arguments.handed.words = reinterpret_cast<uint32_t*>(progress) + words.handed;
  }
  arguments.records = call.saved != nullptr ? static_cast<char*>(call.saved)
                                            : handed + handed_bytes(problem, config);
  arguments.segments =
      segment_memory(problem, config.segments, arguments.records + hopper_record_bytes(problem));
  if (config.segments > 1) {  // before the chunk table: prepare waits for that alone
    clear_unknown(problem, arguments.segments.unknown, stream);
  }
  arguments.table =
      make_chunk_table(problem, kChunk, call.workspace, stream,
                       reinterpret_cast<uint32_t*>(progress), static_cast<int64_t>(words.all));
  return arguments;
}

void hopper_forward(const MomentumDeltaRuleForward& call, const DeviceFacts& device,
                    cudaStream_t stream) {
  const HopperForwardConfig config = choose_hopper_forward(call.problem, device);
  const HopperForwardArguments arguments = hopper_forward_arguments(call, config, stream);
  const auto run = [&]<class T>() {
    launch_hopper_prepare<T>(call, config, arguments, stream);
    if (config.segments > 1) {
      launch_hopper_segment_map(call, config, arguments, stream);
      launch_segment_states(call.problem, call.inputs, config.segments, arguments.segments, stream);
    }
    launch_hopper_recurrence<T>(call, config, arguments, stream);
  };
  call.problem.dtype == DType::kFloat16 ? run.template operator()<__half>()
                                        : run.template operator()<__nv_bfloat16>();
}

}  // namespace mdn::kernels::cuda
