// The host side of the Hopper backward pass: which problems it takes, its workspace, its launches.
//
// Chunk states and their gradients dominate the workspace (8 K V bytes a chunk and value head, half
// of it without momentum), so value heads are taken in groups whose tiles stay within four times
// the bytes of q, k, v and o; groups run one after the other in the same memory.
#include <cuda_runtime_api.h>

#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/momentum_delta_rule/chunk_table.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_backward_launch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"
#include "mdn/kernels/cuda/momentum_delta_rule/segment_states.h"
#include "mdn/kernels/cuda/ptx/tensor_map.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {
namespace {

using backward_pass::Arguments;

constexpr size_t kSmallestLimit = size_t{64} << 20;  // small problems are never cut

int64_t tokens(const MomentumDeltaRuleProblem& problem) {
  return problem.B * problem.T;
}

/// Where things lie in the workspace, in bytes from its start.
struct Plan {
  int64_t entries;
  int heads;        // value heads of a group
  size_t table;     // chunk table
  size_t progress;  // words: of a group the first of `taken` [HV], and `ready` [entries][HV]
  size_t state;     // bytes of one of S, M, dS, dM of a group
  size_t S, M, dS, dM, R;
  size_t partial;  // bytes of the fp32 sums of dq, and of dk; 0 without shared heads
  size_t d_q, d_k;
  size_t ends;  // SegmentEnds
  size_t bytes;
};

Plan make_plan(const MomentumDeltaRuleProblem& problem, int segments) {
  Plan plan{};
  plan.entries = max_chunks(problem, kChunk);
  const auto K = static_cast<size_t>(problem.K);
  const auto V = static_cast<size_t>(problem.V);
  const auto HV = static_cast<size_t>(problem.HV);
  const auto H = static_cast<size_t>(problem.H);
  const auto chunks = static_cast<size_t>(plan.entries);
  const size_t states = problem.momentum ? 4 : 2;  // S, dS and M, dM
  const size_t head_bytes = chunks * (states * K * V + kChunk * V) * 2;
  const size_t tensors = static_cast<size_t>(tokens(problem)) * (H * K + HV * V) * 2 * 2;
  const size_t limit = 4 * tensors > kSmallestLimit ? 4 * tensors : kSmallestLimit;
  size_t heads = limit / head_bytes;
  heads = heads < 1 ? 1 : heads > HV ? HV : heads;
  plan.heads = static_cast<int>(heads);
  plan.state = round_up(chunks * heads * K * V * 2);
  plan.table = 0;
  plan.progress = chunk_table_bytes(problem, kChunk);
  plan.S = plan.progress + round_up((chunks + 1) * HV * 4);
  plan.dS = plan.S + plan.state;
  plan.M = plan.dS + plan.state;
  plan.dM = plan.M + plan.state;
  plan.R = plan.S + states * plan.state;
  plan.partial = HV == H ? 0 : round_up(static_cast<size_t>(tokens(problem)) * HV * K * 4);
  plan.d_q = plan.R + round_up(chunks * heads * kChunk * V * 2);
  plan.d_k = plan.d_q + plan.partial;
  plan.ends = plan.d_k + plan.partial;
  plan.bytes = plan.ends + segment_ends_bytes(problem, segments);
  return plan;
}

/// From here on a segment has its own states: those that the forward pass left, and their gradients
/// from the maps that it left.
template <class E>
void find_segment_states(const MomentumDeltaRuleBackward& call, const DeviceFacts& device,
                         const Plan& plan, Arguments& args, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  auto* saved = static_cast<char*>(const_cast<void*>(call.saved));  // read only
  const SegmentMemory memory =
      segment_memory(problem, args.segments, saved + hopper_record_bytes(problem));
  const SegmentEnds ends =
      segment_ends(problem, args.segments, static_cast<char*>(call.workspace) + plan.ends);
  clear_unknown(problem, ends.unknown, stream);
  Arguments of_ends = args;
  of_ends.d_initial_S = ends.end_S;
  of_ends.d_initial_M = ends.end_M;
  launch_hopper_segment_ends<E>(of_ends, problem.momentum, device.multiprocessors, stream);
  launch_segment_ends(call, args.segments, memory, ends, stream);
  args.initial_S = memory.start_S;
  args.initial_M = memory.start_M;
  args.d_final_S = ends.end_S;
  args.d_final_M = ends.end_M;
  args.unknown_starts = memory.unknown;
  args.unknown_ends = ends.unknown;
}

template <class E>
void run(const MomentumDeltaRuleBackward& call, const DeviceFacts& device, const Plan& plan,
         Arguments args, uint32_t* progress, cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const auto HV = static_cast<int>(problem.HV);
  if (args.segments > 1) {
    find_segment_states<E>(call, device, plan, args, stream);
  }
  for (int head = 0; head < HV; head += plan.heads) {
    args.head = head;
    args.heads = HV - head < plan.heads ? HV - head : plan.heads;
    args.taken = progress + head;
    args.ready = progress + HV + plan.entries * head;
    launch_hopper_backward<E>(args, call.inputs, problem.momentum, device.multiprocessors, stream);
  }
  launch_hopper_finish<E>(call, args, stream);
}

}  // namespace

bool hopper_supports_backward(const MomentumDeltaRuleProblem& problem, const DeviceFacts& device) {
  const bool dtype = problem.dtype == DType::kBFloat16 || problem.dtype == DType::kFloat16;
  const bool K = problem.K == 64 || problem.K == 128 || problem.K == 256;
  const bool V = problem.V == 64 || problem.V == 128 || problem.V == 256 || problem.V == 512;
  constexpr int64_t kLargest = (int64_t{1} << 31) - kChunk;  // coordinates and grids are 32-bit
  return device.major == 9 && device.minor == 0 && device.shared_memory >= 232448 && dtype && K &&
         V && tokens(problem) < kLargest && problem.N * problem.HV * (problem.V / 64) < kLargest;
}

size_t hopper_backward_workspace(const MomentumDeltaRuleProblem& problem,
                                 const DeviceFacts& device) {
  return make_plan(problem, choose_segments(problem, device)).bytes;
}

void hopper_backward(const MomentumDeltaRuleBackward& call, const DeviceFacts& device,
                     cudaStream_t stream) {
  const MomentumDeltaRuleProblem& problem = call.problem;
  const int segments = choose_segments(problem, device);
  const Plan plan = make_plan(problem, segments);
  auto* workspace = static_cast<uint8_t*>(call.workspace);
  auto* progress = reinterpret_cast<uint32_t*>(workspace + plan.progress);
  const ChunkTable table = make_chunk_table(problem, kChunk, workspace + plan.table, stream,
                                            progress, (plan.entries + 1) * problem.HV);

  Arguments args{};
  const int64_t count = tokens(problem);
  const MomentumDeltaRuleInputs& in = call.inputs;
  args.q = ptx::make_tensor_map(problem.dtype, in.q, count, problem.H, problem.K);
  args.k = ptx::make_tensor_map(problem.dtype, in.k, count, problem.H, problem.K);
  args.v = ptx::make_tensor_map(problem.dtype, in.v, count, problem.HV, problem.V);
  args.d_o = ptx::make_tensor_map(problem.dtype, call.d_o, count, problem.HV, problem.V);
  args.d_v = ptx::make_tensor_map(problem.dtype, call.d_v, count, problem.HV, problem.V);
  args.chunks = table.chunks;
  args.begin = table.begin;
  args.entries = table.max_chunks;
  if (problem.cu_seqlens == nullptr) {
    args.chunks_a_row = static_cast<int>((problem.T + kChunk - 1) / kChunk);
    args.tokens_a_row = static_cast<int>(problem.T);
  }
  args.records = static_cast<const uint8_t*>(call.saved);
  args.S = workspace + plan.S;
  args.M = workspace + plan.M;
  args.dS = workspace + plan.dS;
  args.dM = workspace + plan.dM;
  args.R = workspace + plan.R;
  args.alpha = static_cast<const float*>(in.alpha);
  args.mu = static_cast<const float*>(in.mu);
  args.eta = static_cast<const float*>(in.eta);
  args.beta = static_cast<const float*>(in.beta);
  args.pi = static_cast<const float*>(in.pi);
  args.initial_S = static_cast<const float*>(in.initial_S);
  args.initial_M = static_cast<const float*>(in.initial_M);
  args.d_final_S = static_cast<const float*>(call.d_final_S);
  args.d_final_M = static_cast<const float*>(call.d_final_M);
  args.d_v_rows = call.d_v;
  args.partial = problem.HV != problem.H;
  args.l2norm = problem.l2norm;
  args.d_q = args.partial ? workspace + plan.d_q : call.d_q;
  args.d_k = args.partial ? workspace + plan.d_k : call.d_k;
  args.d_alpha = static_cast<float*>(call.d_alpha);
  args.d_mu = static_cast<float*>(call.d_mu);
  args.d_eta = static_cast<float*>(call.d_eta);
  args.d_beta = static_cast<float*>(call.d_beta);
  args.d_pi = static_cast<float*>(call.d_pi);
  args.d_initial_S = static_cast<float*>(call.d_initial_S);
  args.d_initial_M = static_cast<float*>(call.d_initial_M);
  args.scale = static_cast<float>(problem.scale);
  args.segments = segments;
  args.sequences = static_cast<int>(problem.N * segments);
  args.K = static_cast<int>(problem.K);
  args.V = static_cast<int>(problem.V);
  args.HV = static_cast<int>(problem.HV);
  args.group = static_cast<int>(problem.HV / problem.H);
  if (problem.dtype == DType::kBFloat16) {
    run<__nv_bfloat16>(call, device, plan, args, progress, stream);
  } else {
    run<__half>(call, device, plan, args, progress, stream);
  }
}

}  // namespace mdn::kernels::cuda
