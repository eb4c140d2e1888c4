// Speed of kimi_delta_rule on a GPU, as tables in Markdown: passes over whole sequences in bfloat16
// with q and k normalised inside, and the step. L2 is flushed before every timed call, medians of
// 30; the copy bandwidth is measured in the same run.
//
//     bench_kimi_delta_rule_cuda
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <vector>

#include "bench/device_inputs.h"
#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/kimi_delta_rule.h"

namespace mdn::bench {
namespace {

using kernels::KimiDeltaRuleBackward;
using kernels::KimiDeltaRuleForward;
using kernels::KimiDeltaRuleInputs;
using kernels::KimiDeltaRuleProblem;
using kernels::KimiDeltaRuleSizes;
using kernels::KimiDeltaRuleStep;

constexpr DType kType = DType::kBFloat16;
constexpr double kMiB = 1 << 20;
constexpr float kDecayRate = 0.5f;  // log decays -0.5 to 0

struct Shape {
  int64_t B, T, H, K, V;
};

constexpr Shape kShapes[] = {
    {8, 4096, 8, 128, 128}, {1, 32768, 8, 128, 128}, {1, 4096, 8, 128, 128}, {8, 4096, 8, 64, 64}};

// Memory of one call, with normal numbers of its own for each tensor.
class Device : public DevicePool {
 public:
  void* elements(int64_t count) { return take(count * size_of(kType)); }
  void* normal(int64_t count) {
    void* memory = elements(count);
    fill_normal(memory, count, kType, 1.0f, seed_++);
    return memory;
  }

 private:
  uint64_t seed_ = 1;
};

void print_shape(const Shape& s, double copy, cudaStream_t stream) {
  Device device;
  KimiDeltaRuleProblem p;
  p.B = p.N = s.B;
  p.T = s.T;
  p.H = p.HV = s.H;
  p.K = s.K;
  p.V = s.V;
  p.dtype = kType;
  p.scale = 1 / std::sqrt(static_cast<double>(s.K));
  p.l2norm = true;
  const KimiDeltaRuleSizes sizes = kernels::cuda::sizes(p);
  const int64_t qk = p.B * p.T * p.H * p.K, vo = p.B * p.T * p.HV * p.V;
  const int64_t decays = p.B * p.T * p.HV * p.K, betas = p.B * p.T * p.HV;
  float* const alpha = device.floats(decays);
  float* const beta = device.floats(betas);
  fill_decays(alpha, decays, kDecayRate, 101);
  fill_uniform(beta, betas, 102);
  const KimiDeltaRuleInputs inputs{.q = device.normal(qk),
                                   .k = device.normal(qk),
                                   .v = device.normal(vo),
                                   .alpha = alpha,
                                   .beta = beta};
  void* const workspace = device.take(std::max(sizes.forward_workspace, sizes.backward_workspace));
  const KimiDeltaRuleForward forward{
      .problem = p, .inputs = inputs, .o = device.elements(vo), .workspace = workspace};
  const KimiDeltaRuleBackward backward{.problem = p,
                                       .inputs = inputs,
                                       .d_o = device.normal(vo),
                                       .d_q = device.elements(qk),
                                       .d_k = device.elements(qk),
                                       .d_v = device.elements(vo),
                                       .d_alpha = device.floats(decays),
                                       .d_beta = device.floats(betas),
                                       .workspace = workspace};
  const auto run_forward = [&] { kernels::cuda::forward(forward, stream); };
  const auto run_backward = [&] { kernels::cuda::backward(backward, stream); };
  const double forward_ms = time_on_device(run_forward, stream);
  const double backward_ms = time_on_device(run_backward, stream);
  const double both_ms = time_on_device(
      [&] {
        run_forward();
        run_backward();
      },
      stream);
  // Every input read once, every output written once.
  const auto forward_bytes = static_cast<double>(2 * (2 * qk + 2 * vo) + 4 * (decays + betas));
  const auto backward_bytes = static_cast<double>(2 * (4 * qk + 3 * vo) + 8 * (decays + betas));
  fmt::print("| {},{},{},{},{} | {:.3f} | {:.3f} | {:.3f} | {:.3f}, {:.3f} | {:.0f}, {:.0f} |\n",
             s.B, s.T, s.H, s.K, s.V, forward_ms, backward_ms, both_ms, forward_bytes / copy * 1e3,
             backward_bytes / copy * 1e3, static_cast<double>(sizes.forward_workspace) / kMiB,
             static_cast<double>(sizes.backward_workspace) / kMiB);
  std::fflush(stdout);
}

/// As print_decode of bench_momentum_delta_rule_cuda: steps in a graph, each with states of its
/// own, so that all of them come from memory.
void print_step(int64_t B, double copy, cudaStream_t stream) {
  constexpr int64_t H = 8, K = 128, V = 128;
  constexpr int64_t kPoolBytes = int64_t{2} << 30;
  Device device;
  const int64_t states = B * H * V * K;
  float* const alpha = device.floats(B * H * K);
  float* const beta = device.floats(B * H);
  fill_decays(alpha, B * H * K, kDecayRate, 101);
  fill_uniform(beta, B * H, 102);
  KimiDeltaRuleStep step{.B = B,
                         .H = H,
                         .HV = H,
                         .K = K,
                         .V = V,
                         .dtype = kType,
                         .scale = 1 / std::sqrt(static_cast<double>(K)),
                         .l2norm = true,
                         .q = device.normal(B * H * K),
                         .k = device.normal(B * H * K),
                         .v = device.normal(B * H * V),
                         .alpha = alpha,
                         .beta = beta,
                         .o = device.elements(B * H * V)};
  std::vector<std::function<void()>> calls;
  for (int64_t pool = 0; pool < std::clamp<int64_t>(kPoolBytes / (4 * states), 4, 200); ++pool) {
    step.S = device.floats(states);
    fill_uniform(static_cast<float*>(step.S), states, 103);
    calls.emplace_back([step, stream] { kernels::cuda::step(step, stream); });
  }
  MDN_CUDA_CHECK(cudaDeviceSynchronize());
  const double one_ms = time_on_device(calls[0], stream);
  const double ms = time_in_graph(calls, stream);
  const double bytes = 2.0 * static_cast<double>(states) * sizeof(float);
  fmt::print("| {} | {:.1f} | {:.2f} | {:.1f}% |\n", B, 1e3 * one_ms, 1e3 * ms,
             100 * bytes / (ms * 1e-3) / copy);
  std::fflush(stdout);
}

int run() {
  cudaStream_t stream = nullptr;
  MDN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  MDN_CUDA_CHECK(cudaDeviceSynchronize());
  const double copy = measure_copy(stream);
  fmt::print("{}; copies at {:.2f} TB/s\n\n", describe_device(), copy * 1e-12);
  fmt::print(
      "| shape (B,T,H,K,V) | forward ms | backward ms | both ms | copy time of the least bytes, ms "
      "| workspaces MiB |\n|---|---|---|---|---|---|\n");
  for (const Shape& shape : kShapes) {
    print_shape(shape, copy, stream);
  }
  fmt::print(
      "\nStep, 8 heads of 128:\n\n| batch | one call µs | in a graph µs | of copy, states alone "
      "|\n|---|---|---|---|\n");
  for (const int64_t B : {1, 16, 64, 256}) {
    print_step(B, copy, stream);
  }
  return 0;
}

}  // namespace
}  // namespace mdn::bench

int main() {
  return mdn::bench::run();
}
