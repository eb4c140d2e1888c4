// Speed of momentum_delta_rule on a GPU, as tables in Markdown: the published shapes on the kernels
// that dispatch chooses, with and without momentum, and on the portable ones, and the decode step.
// L2 is flushed before every timed call, medians of 30; the copy bandwidth is measured in the same
// run.
//
//     bench_momentum_delta_rule_cuda [shapes] [gated] [portable] [decode]   (nothing: all of them)
//     bench_momentum_delta_rule_cuda once                     (every call once, for a profiler)
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/device_inputs.h"
#include "bench/momentum_delta_rule_calls.h"
#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/momentum_delta_rule/dispatch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/portable.h"

namespace mdn::bench {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleSizes;
using kernels::MomentumDeltaRuleStep;
using kernels::cuda::Path;

// bf16 matrix product of 8192³ on an H100 (docs/design/momentum_delta_rule_forward.md).
constexpr double kMatmulPeak = 807e12;
constexpr double kMiB = 1 << 20;

/// A published shape with what others need for it (forward / forward + backward).
struct Shape {
  const char* name;
  int64_t B, T, H, K, V;
  const char* authors;
  int64_t authors_MiB;  // 0: not measured
  const char* gdn;
};

constexpr Shape kShapes[] = {
    {"8,4096,6,128,256", 8, 4096, 6, 128, 256, "1.79 / 7.37", 2045, "0.94 / 2.99, 1035 MiB"},
    {"8,4096,8,128,128", 8, 4096, 8, 128, 128, "1.69 / 7.62", 2023, "0.91 / 3.41, 868 MiB"},
    {"4,4096,6,256,512", 4, 4096, 6, 256, 512, "4.17 / 11.98", 2751, "not measured"},
    {"1,32768,8,128,128", 1, 32768, 8, 128, 128, "not measured", 0, "not measured"},
    {"1,4096,6,128,256", 1, 4096, 6, 128, 256, "not measured", 0, "not measured"},
};

/// The tensors and calls of one shape.
struct Calls {
  MomentumDeltaRuleForward forward;
  MomentumDeltaRuleBackward backward;
  MomentumDeltaRuleSizes sizes;

  Calls(DevicePool& device, const Shape& s, DType dtype, bool portable, bool momentum) {
    MomentumDeltaRuleProblem p;
    p.B = p.N = s.B;
    p.T = s.T;
    p.H = p.HV = s.H;
    p.K = s.K;
    p.V = s.V;
    p.dtype = dtype;
    p.scale = 1 / std::sqrt(static_cast<double>(s.K));
    p.l2norm = true;
    p.momentum = momentum;
    sizes = kernels::cuda::sizes(p);
    if (portable) {
      sizes = {0, kernels::cuda::portable_backward_workspace(p), 0};
    }
    const int64_t qk = p.B * p.T * p.H * p.K;
    const int64_t vo = p.B * p.T * p.HV * p.V;
    const int64_t gates = p.B * p.T * p.HV;
    uint64_t seed = 1;
    const auto normal = [&](int64_t count) {
      void* memory = device.take(count * size_of(dtype));
      fill_normal(memory, count, dtype, 1.0f, seed++);
      return memory;
    };
    float* gate[4];
    for (float*& g : gate) {
      g = device.floats(gates);
    }
    fill_layer_gates(gate[0], gate[1], gate[2], gate[3], gates, seed++);
    forward.problem = p;
    forward.inputs = {normal(qk), normal(qk), normal(vo), gate[0], momentum ? gate[1] : nullptr,
                      gate[2],    gate[3],    nullptr,    nullptr, nullptr};
    forward.o = device.take(vo * size_of(dtype));
    forward.saved = device.take(sizes.saved);
    forward.workspace = device.take(sizes.forward_workspace);
    backward.problem = p;
    backward.inputs = forward.inputs;
    backward.saved = forward.saved;
    backward.d_o = normal(vo);
    backward.d_q = device.take(qk * size_of(dtype));
    backward.d_k = device.take(qk * size_of(dtype));
    backward.d_v = device.take(vo * size_of(dtype));
    backward.d_alpha = device.floats(gates);
    backward.d_mu = momentum ? device.floats(gates) : nullptr;
    backward.d_eta = device.floats(gates);
    backward.d_beta = device.floats(gates);
    backward.workspace = device.take(sizes.backward_workspace);
  }
};

/// Bytes that must move: every input read once, every output written once.
double forward_bytes(const MomentumDeltaRuleProblem& p) {
  const double tokens = static_cast<double>(p.B * p.T);
  const double element = static_cast<double>(size_of(p.dtype));
  return tokens * (element * static_cast<double>(2 * p.H * p.K + 2 * p.HV * p.V) +
                   4.0 * (p.momentum ? 4.0 : 3.0) * static_cast<double>(p.HV));
}
double backward_bytes(const MomentumDeltaRuleProblem& p) {
  const double tokens = static_cast<double>(p.B * p.T);
  const double element = static_cast<double>(size_of(p.dtype));
  return tokens * (element * static_cast<double>(4 * p.H * p.K + 3 * p.HV * p.V) +
                   4.0 * (p.momentum ? 8.0 : 6.0) * static_cast<double>(p.HV));
}

void print_shapes(bool portable, bool momentum, double copy, cudaStream_t stream) {
  fmt::print("\n## {}{} (bf16, l2norm inside, gates as the layer makes them)\n\n",
             portable ? "Portable kernels" : "Kernels that dispatch chooses",
             momentum ? "" : ", without momentum");
  fmt::print(
      "| shape (B,T,H,K,V) | kernels | forward ms | backward ms | both ms | first calls ms | "
      "TFLOP/s forward, backward | of an H100's {:.0f} TFLOP/s | copy time of the least bytes, ms "
      "| extra memory MiB | of the authors' | authors ms | FLA's GDN |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
      kMatmulPeak * 1e-12);
  for (const Shape& shape : kShapes) {
    DevicePool device;
    Calls calls(device, shape, DType::kBFloat16, portable, momentum);
    const MomentumDeltaRuleProblem& p = calls.forward.problem;
    const auto forward = [&] {
      portable ? kernels::cuda::portable_forward(calls.forward, stream)
               : kernels::cuda::forward(calls.forward, stream);
    };
    const auto backward = [&] {
      portable ? kernels::cuda::portable_backward(calls.backward, stream)
               : kernels::cuda::backward(calls.backward, stream);
    };
    MDN_CUDA_CHECK(cudaDeviceSynchronize());  // inputs are made on another stream
    const auto start = std::chrono::steady_clock::now();
    forward();
    backward();
    MDN_CUDA_CHECK(cudaStreamSynchronize(stream));
    const std::chrono::duration<double, std::milli> first =
        std::chrono::steady_clock::now() - start;
    const int repeats = portable ? 3 : 30;
    const double forward_ms = time_on_device(forward, stream, repeats);
    const double backward_ms = time_on_device(backward, stream, repeats);
    const double both_ms = time_on_device(
        [&] {
          forward();
          backward();
        },
        stream, repeats);
    const auto choice = kernels::cuda::choose(p, kernels::cuda::device_facts());
    const double extra = static_cast<double>(p.B * p.T * p.HV * p.V) * 2 + calls.sizes.saved +
                         std::max(calls.sizes.forward_workspace, calls.sizes.backward_workspace);
    const double forward_rate = forward_flops(p) / (forward_ms * 1e-3);
    const double backward_rate = backward_flops(p) / (backward_ms * 1e-3);
    fmt::print(
        "| {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.2f} | {:.1f}, {:.1f} | {:.1f}%, {:.1f}% | "
        "{:.3f}, {:.3f} | {:.0f} | {} | {} | {} |\n",
        shape.name, portable ? "portable" : describe(choice), forward_ms, backward_ms, both_ms,
        first.count(), forward_rate * 1e-12, backward_rate * 1e-12,
        100 * forward_rate / kMatmulPeak, 100 * backward_rate / kMatmulPeak,
        forward_bytes(p) / copy * 1e3, backward_bytes(p) / copy * 1e3, extra / kMiB,
        momentum && shape.authors_MiB > 0
            ? fmt::format("{:.0f}% of {}",
                          100 * extra / kMiB / static_cast<double>(shape.authors_MiB),
                          shape.authors_MiB)
            : "-",
        momentum ? shape.authors : "-", shape.gdn);
    std::fflush(stdout);
  }
}

constexpr int64_t kStepHeads = 6, kStepK = 128, kStepV = 256;

/// Steps of one batch, each with states of its own.
struct Steps {
  DevicePool device;
  std::vector<MomentumDeltaRuleStep> calls;
  double bytes;  // that a step must move

  Steps(int64_t B, DType state_dtype, bool momentum, int64_t pools) {
    const int64_t heads = B * kStepHeads;
    const int64_t states = heads * kStepV * kStepK;
    MomentumDeltaRuleStep step;
    step.B = B;
    step.H = step.HV = kStepHeads;
    step.K = kStepK;
    step.V = kStepV;
    step.dtype = DType::kBFloat16;
    step.scale = 1 / std::sqrt(static_cast<double>(kStepK));
    step.l2norm = true;
    step.state_dtype = state_dtype;
    uint64_t seed = 1;
    const auto normal = [&](int64_t count, DType dtype, float deviation) {
      void* memory = device.take(count * size_of(dtype));
      fill_normal(memory, count, dtype, deviation, seed++);
      return memory;
    };
    step.q = normal(heads * kStepK, DType::kBFloat16, 1);
    step.k = normal(heads * kStepK, DType::kBFloat16, 1);
    step.v = normal(heads * kStepV, DType::kBFloat16, 1);
    step.o = device.take(heads * kStepV * 2);
    float* gate[4];
    for (float*& g : gate) {
      g = device.floats(heads);
    }
    fill_layer_gates(gate[0], gate[1], gate[2], gate[3], heads, seed++);
    step.alpha = gate[0];
    step.mu = momentum ? gate[1] : nullptr;
    step.eta = gate[2];
    step.beta = gate[3];
    for (int64_t i = 0; i < pools; ++i) {
      step.S = normal(states, state_dtype, 0.1f);
      step.M = momentum ? normal(states, state_dtype, 0.1f) : nullptr;
      calls.push_back(step);
    }
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
    const int64_t state_bytes = states * static_cast<int64_t>(size_of(state_dtype));
    bytes = static_cast<double>((momentum ? 4 : 2) * state_bytes +
                                heads * (2 * kStepK + 2 * kStepV) * 2 + heads * 16);
  }
};

/// The step at a batch size, in a graph of many steps whose pools together pass the L2 cache many
/// times, so that every step finds its states in memory.
void print_decode(bool momentum, double copy, double in_place, cudaStream_t stream) {
  constexpr int64_t kPoolBytes = int64_t{2} << 30;
  fmt::print("\n## Decode step{} ({} heads, K {}, V {}, bf16 q, k, v)\n\n",
             momentum ? "" : ", without momentum", kStepHeads, kStepK, kStepV);
  fmt::print(
      "One call: events around a single call after a flush of L2. In a graph: a replay of "
      "many steps, each with another pool of states, by their number. Bandwidth and shares "
      "are those of the graph.\n\n");
  fmt::print(
      "| batch | states | one call µs | in a graph µs | GB/s | of copy ({:.2f} TB/s) | of an "
      "in-place update ({:.2f} TB/s) | floor µs |\n|---|---|---|---|---|---|---|---|\n",
      copy * 1e-12, in_place * 1e-12);
  for (DType state_dtype : {DType::kFloat32, DType::kFloat16}) {
    for (int64_t B : {1, 4, 16, 64, 256}) {
      const int64_t pool_bytes = (momentum ? 2 : 1) * B * kStepHeads * kStepV * kStepK *
                                 static_cast<int64_t>(size_of(state_dtype));
      const Steps steps(B, state_dtype, momentum,
                        std::clamp<int64_t>(kPoolBytes / pool_bytes, 4, 200));
      const double one =
          time_on_device([&] { kernels::cuda::step(steps.calls[0], stream); }, stream) * 1e3;
      std::vector<std::function<void()>> calls;
      for (const MomentumDeltaRuleStep& each : steps.calls) {
        calls.emplace_back([&each, stream] { kernels::cuda::step(each, stream); });
      }
      const double many = time_in_graph(calls, stream) * 1e3;
      const double rate = steps.bytes / (many * 1e-6);
      fmt::print("| {} | {} | {:.2f} | {:.2f} | {:.0f} | {:.1f}% | {:.1f}% | {:.2f} |\n", B,
                 name_of(state_dtype), one, many, rate * 1e-9, 100 * rate / copy,
                 100 * rate / in_place, steps.bytes / copy * 1e6);
      std::fflush(stdout);
    }
  }
}

/// Every shape's passes and steps of three batches, once each and one after the other, each after a
/// line that names it.
void call_once(cudaStream_t stream) {
  for (const Shape& shape : kShapes) {
    DevicePool device;
    const Calls calls(device, shape, DType::kBFloat16, false, true);
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
    fmt::print("call {}\n", shape.name);
    std::fflush(stdout);
    kernels::cuda::forward(calls.forward, stream);
    kernels::cuda::backward(calls.backward, stream);
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
  }
  for (DType state_dtype : {DType::kFloat32, DType::kFloat16}) {
    for (int64_t B : {1, 64, 256}) {
      const Steps steps(B, state_dtype, true, 1);
      fmt::print("call step of {}, states of {}\n", B, name_of(state_dtype));
      std::fflush(stdout);
      kernels::cuda::step(steps.calls[0], stream);
      MDN_CUDA_CHECK(cudaDeviceSynchronize());
    }
  }
}

int run(const std::vector<std::string>& wanted) {
  const auto wants = [&](const char* part) {
    return wanted.empty() || std::find(wanted.begin(), wanted.end(), part) != wanted.end();
  };
  cudaStream_t stream = nullptr;
  MDN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  if (wanted == std::vector<std::string>{"once"}) {
    call_once(stream);
    MDN_CUDA_CHECK(cudaStreamDestroy(stream));
    return 0;
  }
  const double copy = measure_copy(stream);
  const double in_place = measure_in_place(stream);
  fmt::print(
      "- device: {}\n- copy bandwidth of this run: {:.3f} TB/s (read + written); in-place "
      "update by a kernel: {:.3f} TB/s\n- FLOPs counted for chunks of 64: forward 4C²K + "
      "4C²V + 12CKV, backward 10C²K + 10C²V + 32CKV a chunk and head, without momentum half of the "
      "last term\n",
      describe_device(), copy * 1e-12, in_place * 1e-12);
  fmt::print(
      "- first calls: forward and backward once before all others of a shape, by the host's clock, "
      "what the driver loads of their code included\n- extra memory: o, what is saved, and the "
      "larger workspace\n");
  if (wants("shapes")) {
    print_shapes(false, true, copy, stream);
  }
  if (wants("gated")) {
    print_shapes(false, false, copy, stream);
  }
  if (wants("portable")) {
    print_shapes(true, true, copy, stream);
  }
  if (wants("decode")) {
    print_decode(true, copy, in_place, stream);
    print_decode(false, copy, in_place, stream);
  }
  MDN_CUDA_CHECK(cudaStreamDestroy(stream));
  return 0;
}

}  // namespace
}  // namespace mdn::bench

int main(int argc, char** argv) {
  try {
    return mdn::bench::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}
