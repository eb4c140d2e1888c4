// The CUDA backend's entrance for kimi_delta_rule: what is supported, the bytes it needs, the order
// of its kernels. docs/design/kimi_delta_rule_cuda.md.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <initializer_list>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/entrance.h"
#include "mdn/kernels/cuda/kimi_delta_rule/plan.h"
#include "mdn/kernels/cuda/workspace.h"

namespace mdn::kernels::cuda {
namespace {

using kimi::Work;

constexpr const char* kOperation = "kimi_delta_rule";
constexpr size_t kMostBytes = size_t{2} << 30;  // of a pass over more than one query/key head

void check_supported(const KimiDeltaRuleProblem& problem) {
  const std::string reason = unsupported(problem);
  MDN_CHECK(reason.empty(), "kimi_delta_rule on CUDA: {}", reason);
}

/// The kernels read and write 16 bytes at once.
void check_aligned(std::initializer_list<const void*> tensors) {
  for (const void* tensor : tensors) {
    MDN_CHECK(reinterpret_cast<uintptr_t>(tensor) % 16 == 0,
              "kimi_delta_rule on CUDA: a tensor at {} is not on a multiple of 16 bytes", tensor);
  }
}

size_t record_bytes(int64_t K) {
  return kimi::padded_keys(K) == 64 ? kimi::Record<64>::kBytes : kimi::Record<128>::kBytes;
}

int64_t value_tiles(const KimiDeltaRuleProblem& problem) {
  return (problem.V + kimi::kValueTile - 1) / kimi::kValueTile;
}

/// Bytes of each part of the memory for `heads` value heads.
struct Parts {
  size_t table, records, states, rows;  // states, d_states; R, d_R

  Parts(const KimiDeltaRuleProblem& problem, int64_t heads) {
    const auto places = static_cast<size_t>(max_chunks(problem, kimi::kChunk) * heads);
    const size_t tiles = places * static_cast<size_t>(value_tiles(problem));
    table = chunk_table_bytes(problem, kimi::kChunk);
    records = round_up(places * record_bytes(problem.K));
    states = tiles * static_cast<size_t>(kimi::padded_keys(problem.K) / 16) * kimi::kFragmentBytes;
    rows = tiles * kimi::kFragmentBytes;
  }
  size_t forward() const { return table + records; }
  size_t backward() const { return table + records + 2 * states + 2 * rows; }
};

/// How a pass over the call is cut: so many query/key heads at once, in so many bytes.
struct Plan {
  int64_t key_heads;
  size_t bytes;

  Plan(const KimiDeltaRuleProblem& problem, size_t (Parts::*size)() const) {
    const int64_t group = problem.HV / problem.H;
    const auto bytes_of = [&](int64_t heads) { return (Parts(problem, heads * group).*size)(); };
    const auto fit = static_cast<int64_t>(kMostBytes / bytes_of(1));
    const int64_t passes = (problem.H - 1) / std::clamp<int64_t>(fit, 1, problem.H) + 1;
    key_heads = (problem.H - 1) / passes + 1;  // as even as it gets: each should fill the device
    bytes = bytes_of(key_heads);
  }
};

Plan forward_plan(const KimiDeltaRuleProblem& problem) {
  return Plan(problem, &Parts::forward);
}
Plan backward_plan(const KimiDeltaRuleProblem& problem) {
  return Plan(problem, &Parts::backward);
}

/// Queues the chunk table and calls body(work) for each pass over some of the heads.
template <class F>
void for_heads(const KimiDeltaRuleProblem& problem, const Plan& plan, void* workspace,
               cudaStream_t stream, const F& body) {
  const int64_t group = problem.HV / problem.H;
  const Parts parts(problem, plan.key_heads * group);
  auto* at = static_cast<unsigned char*>(workspace) + parts.table;
  const auto take = [&at](size_t bytes) {
    unsigned char* const part = at;
    at += bytes;
    return part;
  };
  Work work;
  work.table = make_chunk_table(problem, kimi::kChunk, workspace, stream);
  work.value_tiles = value_tiles(problem);
  work.records = take(parts.records);
  // Past the end of the memory in a forward pass, and not touched there.
  work.states = reinterpret_cast<uint4*>(take(parts.states));
  work.d_states = reinterpret_cast<uint4*>(take(parts.states));
  work.R = reinterpret_cast<uint4*>(take(parts.rows));
  work.d_R = reinterpret_cast<uint4*>(take(parts.rows));
  for (int64_t head = 0; head < problem.H; head += plan.key_heads) {
    work.first_head = head * group;
    work.heads = std::min(plan.key_heads, problem.H - head) * group;
    body(work);
  }
}

}  // namespace

std::string unsupported(const KimiDeltaRuleProblem& p) {
  if (p.dtype != DType::kFloat16 && p.dtype != DType::kBFloat16) {
    return fmt::format("dtype {}; supported are float16 and bfloat16", name_of(p.dtype));
  }
  const auto fits = [](int64_t channels) {
    return channels <= kimi::kMaxChannels && channels % kimi::kGranule == 0;
  };
  if (!fits(p.K) || !fits(p.V)) {
    return fmt::format("K = {}, V = {}; supported are multiples of {} up to {}", p.K, p.V,
                       kimi::kGranule, kimi::kMaxChannels);
  }
  return unsupported_device(device_facts());
}

std::string unsupported(const KimiDeltaRuleStep& call) {
  if (call.dtype == DType::kFloat64) {
    return "dtype float64; supported are float32, float16 and bfloat16";
  }
  if (call.K > kimi::kMaxStepChannels) {
    return fmt::format("K = {}; supported are 1 to {}", call.K, kimi::kMaxStepChannels);
  }
  return unsupported_device(device_facts());
}

KimiDeltaRuleSizes sizes(const KimiDeltaRuleProblem& problem) {
  check_supported(problem);
  return {.forward_workspace = forward_plan(problem).bytes,
          .backward_workspace = backward_plan(problem).bytes};
}

void forward(const KimiDeltaRuleForward& call, Stream stream) {
  check(call);
  check_supported(call.problem);
  check_workspace_address(kOperation, call.workspace);
  const KimiDeltaRuleInputs& x = call.inputs;
  check_aligned({x.q, x.k, x.v, x.alpha, x.initial_S, call.o, call.final_S});
  const auto queue = static_cast<cudaStream_t>(stream);
  const Plan plan = forward_plan(call.problem);
  for_heads(call.problem, plan, call.workspace, queue, [&](const Work& work) {
    kimi::prepare(call.problem, x, work, queue);
    kimi::walk(call, work, queue);
  });
}

void backward(const KimiDeltaRuleBackward& call, Stream stream) {
  check(call);
  check_supported(call.problem);
  check_workspace_address(kOperation, call.workspace);
  const KimiDeltaRuleInputs& x = call.inputs;
  check_aligned({x.q, x.k, x.v, x.alpha, x.initial_S, call.d_o, call.d_final_S, call.d_q, call.d_k,
                 call.d_v, call.d_initial_S});
  const auto queue = static_cast<cudaStream_t>(stream);
  const Plan plan = backward_plan(call.problem);
  for_heads(call.problem, plan, call.workspace, queue, [&](const Work& work) {
    kimi::prepare(call.problem, x, work, queue);
    kimi::walk_states(call.problem, x, work, queue);
    kimi::walk_back(call, work, queue);
    kimi::gradients(call, work, queue);
  });
}

void step(const KimiDeltaRuleStep& call, Stream stream) {
  check(call);
  const std::string reason = unsupported(call);
  MDN_CHECK(reason.empty(), "kimi_delta_rule step on CUDA: {}", reason);
  kimi::step(call, static_cast<cudaStream_t>(stream));
}

}  // namespace mdn::kernels::cuda
