// Times momentum_delta_rule on the CPU: forward, forward + backward and the single-token step, as
// shares of what this machine reaches with a matrix product and with a copy in the same run, and
// how the time grows with the length.
//
//     bench_momentum_delta_rule [speed|step|growth ...]      all of them without arguments
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "bench/momentum_delta_rule_calls.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::bench {
namespace {

using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleStep;

double mib(size_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

void bench_speed() {
  fmt::print(
      "\n| shape (B,T,H,K,V) | type | sgemm GFLOP/s | forward ms | GFLOP/s | of sgemm | forward + "
      "backward ms | "
      "GFLOP/s | of sgemm | workspace + saved MiB |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const test::MomentumDeltaRuleCase& c : test::speed_cases()) {
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const Calls calls(c, dtype);
      const MomentumDeltaRuleProblem& p = calls.forward.problem;
      // The anchor before and after: on a shared machine it moves from minute to minute.
      const double sgemm_before = measure_sgemm(0.3);
      const double forward = time_calls([&] { kernels::cpu::forward(calls.forward); }).median;
      const double both = time_calls([&] {
                            kernels::cpu::forward(calls.forward);
                            kernels::cpu::backward(calls.backward);
                          }).median;
      const double sgemm = std::max(sgemm_before, measure_sgemm(0.3));
      const double forward_rate = forward_flops(p) / forward;
      const double both_rate = (forward_flops(p) + backward_flops(p)) / both;
      fmt::print(
          "| {} {},{},{},{},{} | {} | {:.1f} | {:.2f} | {:.1f} | {:.0f}% | {:.2f} | {:.1f} | "
          "{:.0f}% | "
          "{:.1f} |\n",
          c.name, p.B, p.T, p.H, p.K, p.V, name_of(dtype), sgemm / 1e9, forward * 1e3,
          forward_rate / 1e9, 100 * forward_rate / sgemm, both * 1e3, both_rate / 1e9,
          100 * both_rate / sgemm,
          mib(std::max(calls.sizes.forward_workspace, calls.sizes.backward_workspace) +
              calls.sizes.saved));
      std::fflush(stdout);
    }
  }
}

void bench_step() {
  fmt::print(
      "\n| step (B,H,K,V) | states MB | copy GB/s | us, median | GB/s | best GB/s | of copy "
      "|\n|---|---|---|---|---|---|---|\n");
  struct Shape {
    int64_t B, H, K, V;
  };
  for (const Shape& s : {Shape{1, 4, 64, 64}, Shape{1, 6, 128, 256}, Shape{16, 6, 128, 256},
                         Shape{64, 6, 128, 256}, Shape{256, 6, 128, 256}, Shape{64, 6, 256, 512}}) {
    MomentumDeltaRuleStep call;
    call.B = s.B;
    call.H = call.HV = s.H;
    call.K = s.K;
    call.V = s.V;
    call.l2norm = true;
    const int64_t heads = s.B * s.H;
    const std::vector<double> k_rows(heads * s.K, 0.3), v_rows(heads * s.V, 0.7), gates(heads, 0.5);
    const Memory q(k_rows, DType::kFloat32), k(k_rows, DType::kFloat32), v(v_rows, DType::kFloat32);
    const Memory o(v_rows, DType::kFloat32), gate(gates, DType::kFloat32);
    const size_t bytes = static_cast<size_t>(heads * s.K * s.V) * sizeof(float);
    const Memory S(bytes), M(bytes);
    call.q = q.get();
    call.k = k.get();
    call.v = v.get();
    call.o = o.get();
    call.alpha = call.mu = call.eta = call.beta = gate.get();
    call.S = S.get();
    call.M = M.get();
    const double copy_before = measure_copy(0.5);
    const Timing time = time_calls([&] { kernels::cpu::step(call); });
    const double copy = std::max(copy_before, measure_copy(0.5));
    const double moved = 4.0 * static_cast<double>(bytes);  // S and M read and written
    // The share is of best calls: the copy is one, and a shared host's bandwidth drifts.
    fmt::print("| {},{},{},{} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.1f} | {:.0f}% |\n", s.B, s.H,
               s.K, s.V, 2e-6 * static_cast<double>(bytes), copy / 1e9, time.median * 1e6,
               moved / time.median / 1e9, moved / time.best / 1e9, 100 * moved / time.best / copy);
    std::fflush(stdout);
  }
}

void bench_growth() {
  fmt::print(
      "\n| tokens (H 1, K 64, V 64) | forward ms | us a token | forward + backward ms | us a "
      "token | workspace + saved MiB |\n|---|---|---|---|---|---|\n");
  for (int64_t T = 1024; T <= 256 * 1024; T *= 4) {
    const Calls calls({.name = "growth",
                       .T = T,
                       .K = 64,
                       .V = 64,
                       .gates = test::Gates::kLayer,
                       .states = false,
                       .l2norm = true},
                      DType::kFloat32);
    const double forward = time_calls([&] { kernels::cpu::forward(calls.forward); }, 1, 3).median;
    const double both = time_calls(
                            [&] {
                              kernels::cpu::forward(calls.forward);
                              kernels::cpu::backward(calls.backward);
                            },
                            1, 3)
                            .median;
    const double per_token = 1e6 / static_cast<double>(T);
    fmt::print("| {}k | {:.2f} | {:.3f} | {:.2f} | {:.3f} | {:.1f} |\n", T / 1024, forward * 1e3,
               forward * per_token, both * 1e3, both * per_token,
               mib(std::max(calls.sizes.forward_workspace, calls.sizes.backward_workspace) +
                   calls.sizes.saved));
    std::fflush(stdout);
  }
}

void run(const std::set<std::string>& wanted) {
  fmt::print(
      "{}\nsgemm: 1024^3 with the kernels' own tiles; copy: read + written; both beside each row.\n"
      "Products are counted with chunks of {:.0f} tokens, whatever the chunk used.\n",
      describe_cpu(), kCountedChunk);
  const auto asked = [&](const char* name) { return wanted.empty() || wanted.count(name) > 0; };
  if (asked("speed")) {
    bench_speed();
  }
  if (asked("step")) {
    bench_step();
  }
  if (asked("growth")) {
    bench_growth();
  }
}

}  // namespace
}  // namespace mdn::bench

int main(int argc, char** argv) {
  mdn::bench::run({argv + 1, argv + argc});
}
