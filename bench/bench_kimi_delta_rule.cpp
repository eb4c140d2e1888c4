// Times kimi_delta_rule on the CPU in float32: the operator (a chunkwise program) against the same
// recurrence one token after the other, by its own step and by libtorch's operations with autograd.
// The anchor is libtorch's matrix product in the same run. Beside the time on the wall stands the
// processor's time of all threads: with one thread (OMP_NUM_THREADS=1) it is what to compare on a
// machine that does other work.
//
//     bench_kimi_delta_rule
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <ctime>
#include <functional>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/ops/kimi_delta_rule.h"

namespace mdn::bench {
namespace {

using at::Tensor;

struct Shape {
  int64_t B, T, H, K, V;
};

struct Times {
  double wall, cpu;  // seconds of a call: the best of a few
};

Times best_of(int calls, const std::function<void()>& body) {
  if (calls > 1) {
    body();  // not timed
  }
  Times best{1e30, 1e30};
  for (int i = 0; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const std::clock_t cpu = std::clock();
    body();
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    best.wall = std::min(best.wall, wall.count());
    best.cpu = std::min(best.cpu, double(std::clock() - cpu) / CLOCKS_PER_SEC);
  }
  return best;
}

/// q, k, v, alpha, beta of a layer at its published initial values, q and k normalised.
std::vector<Tensor> make_inputs(const Shape& s) {
  const auto unit = [](const Tensor& x) { return x / x.norm(2, -1, true); };
  return {unit(at::randn({s.B, s.T, s.H, s.K})), unit(at::randn({s.B, s.T, s.H, s.K})),
          at::randn({s.B, s.T, s.H, s.V}), (at::rand({s.B, s.T, s.H, s.K}) * -0.5).exp(),
          at::rand({s.B, s.T, s.H})};
}

Tensor by_operator(const std::vector<Tensor>& x) {
  return std::get<0>(ops::kimi_delta_rule(x[0], x[1], x[2], x[3], x[4], std::nullopt, std::nullopt,
                                          std::nullopt, false));
}

Tensor by_steps(const std::vector<Tensor>& x) {
  Tensor S = at::zeros({x[2].size(0), x[2].size(2), x[2].size(3), x[0].size(3)});
  std::vector<Tensor> o;
  for (int64_t t = 0; t < x[0].size(1); ++t) {
    const auto token = [&](const Tensor& y) { return y.select(1, t); };
    o.push_back(ops::kimi_delta_rule_step(token(x[0]), token(x[1]), token(x[2]), token(x[3]),
                                          token(x[4]), S, std::nullopt, std::nullopt, false));
  }
  return at::stack(o, 1);
}

Tensor by_torch(const std::vector<Tensor>& x) {
  const double scale = 1 / std::sqrt(double(x[0].size(3)));
  Tensor S = at::zeros({x[2].size(0), x[2].size(2), x[2].size(3), x[0].size(3)});
  std::vector<Tensor> o;
  for (int64_t t = 0; t < x[0].size(1); ++t) {
    const auto token = [&](const Tensor& y) { return y.select(1, t); };
    const Tensor k = token(x[1]).unsqueeze(-1);  // [B, H, K, 1]
    S = S * token(x[3]).unsqueeze(-2);
    const Tensor r = token(x[2]).unsqueeze(-1) - S.matmul(k);
    S = S + (token(x[4]).unsqueeze(-1).unsqueeze(-1) * r).matmul(k.mT());
    o.push_back(scale * S.matmul(token(x[0]).unsqueeze(-1)).squeeze(-1));
  }
  return at::stack(o, 1);
}

using Program = Tensor (*)(const std::vector<Tensor>&);

Times time_forward(const std::vector<Tensor>& x, Program program, int calls) {
  return best_of(calls, [&] { program(x); });
}

Times time_both(const std::vector<Tensor>& x, Program program, int calls) {
  std::vector<Tensor> leaves;
  for (const Tensor& t : x) {
    leaves.push_back(t.clone().requires_grad_(true));
  }
  const Tensor d_o = at::randn_like(x[2]);
  return best_of(calls, [&] {
    for (Tensor& leaf : leaves) {
      leaf.mutable_grad().reset();
    }
    program(leaves).backward(d_o);
  });
}

void print(const char* what, const Times& t, const Times& operators) {
  std::puts(fmt::format("  {:<44} {:9.1f} ms {:9.1f} ms {:7.1f}", what, 1e3 * t.wall, 1e3 * t.cpu,
                        t.cpu / operators.cpu)
                .c_str());
  std::fflush(stdout);
}

void bench_shape(const Shape& s) {
  const auto x = make_inputs(s);
  const Tensor want = by_torch(x);
  for (Program program : {by_operator, by_steps}) {
    const double error = ((program(x) - want).norm() / want.norm()).item<double>();
    MDN_CHECK(error < 1e-5, "programs disagree by {}", error);
  }
  std::puts(fmt::format("B {} T {} H {} K {} V {}: {:<20} {:>12} {:>12} {:>7}", s.B, s.T, s.H, s.K,
                        s.V, "", "wall", "CPU", "ratio")
                .c_str());
  const Times forward = time_forward(x, by_operator, 3);
  print("operator, forward", forward, forward);
  print("step by step (kernel), forward", time_forward(x, by_steps, 2), forward);
  print("step by step (libtorch), forward", time_forward(x, by_torch, 1), forward);
  const Times both = time_both(x, by_operator, 3);
  print("operator, forward and backward", both, both);
  print("step by step (libtorch), forward and backward", time_both(x, by_torch, 1), both);
}

int run() {
  at::manual_seed(1);
  const Tensor a = at::rand({1024, 1024}), b = at::rand({1024, 1024});
  Tensor c = at::empty({1024, 1024});
  const Times product = best_of(10, [&] { at::mm_out(c, a, b); });
  std::puts(fmt::format("{} threads; matrix product {:.0f} GFLOP/s on the wall, {:.0f} a second of "
                        "CPU time",
                        at::get_num_threads(), 2.147 / product.wall, 2.147 / product.cpu)
                .c_str());
  for (const Shape& shape : {Shape{1, 512, 8, 128, 128}, Shape{1, 2048, 8, 128, 128}}) {
    bench_shape(shape);
  }
  return 0;
}

}  // namespace
}  // namespace mdn::bench

int main() {
  return mdn::bench::run();
}
