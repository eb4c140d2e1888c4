// Times momentum_delta_rule on the CPU against the same operator written with libtorch's tensors:
// token by token, and chunkwise (kernels of matrix products, masks by their recurrence, a
// triangular solve); the gradients of these two come from autograd. The anchor is libtorch's own
// float32 matrix product in the same run.
//
//     bench_momentum_delta_rule_torch
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <vector>

#include "bench/machine.h"
#include "bench/momentum_delta_rule_calls.h"
#include "mdn/core/error.h"

namespace mdn::bench {
namespace {

/// What the two programs read: heads of all rows in front, [B H, T, ...].
struct Inputs {
  at::Tensor q, k, v, alpha, mu, eta, beta;  // q, k normalised; gates [B H, T]
  at::Tensor d_o;
  double scale;

  std::vector<at::Tensor> leaves() const { return {q, k, v, alpha, mu, eta, beta}; }
};

at::Tensor from_values(const std::vector<double>& x, at::IntArrayRef shape) {
  return at::from_blob(const_cast<double*>(x.data()), shape, at::kDouble).to(at::kFloat);
}

Inputs make_inputs(const test::MomentumDeltaRuleCase& c) {
  const test::MomentumDeltaRuleData data(c, DType::kFloat32);
  const auto rows = [&](const std::vector<double>& x, int64_t columns) {
    return from_values(x, {c.B, c.T, c.H, columns})
        .transpose(1, 2)
        .reshape({c.B * c.H, c.T, columns})
        .contiguous();
  };
  const auto gate = [&](const std::vector<double>& x) { return rows(x, 1).squeeze(-1); };
  const auto normalised = [](const at::Tensor& x) {
    return x * at::rsqrt(x.square().sum(-1, true) + kernels::kL2NormEps);
  };
  Inputs in;
  in.q = rows(data.q, c.K);
  in.k = rows(data.k, c.K);
  if (c.l2norm) {
    in.q = normalised(in.q);
    in.k = normalised(in.k);
  }
  in.v = rows(data.v, c.V);
  in.alpha = gate(data.alpha);
  in.mu = gate(data.mu);
  in.eta = gate(data.eta);
  in.beta = gate(data.beta);
  in.d_o = rows(data.d_o, c.V);
  in.scale = data.scale;
  for (at::Tensor leaf : in.leaves()) {
    leaf.requires_grad_(true);
  }
  return in;
}

/// The definition, one token after the other.
at::Tensor stepwise(const Inputs& in) {
  const int64_t N = in.q.size(0), T = in.q.size(1), K = in.q.size(2), V = in.v.size(2);
  at::Tensor S = at::zeros({N, K, V});
  at::Tensor M = at::zeros({N, K, V});
  std::vector<at::Tensor> o;
  for (int64_t t = 0; t < T; ++t) {
    const auto gate = [&](const at::Tensor& x) { return x.select(1, t).view({N, 1, 1}); };
    const at::Tensor k = in.k.select(1, t).unsqueeze(2);  // [N, K, 1]
    // r = v - alpha Sᵀk;  M <- mu M - eta k rᵀ;  S <- alpha S - beta M;  o = scale Sᵀq
    const at::Tensor r = in.v.narrow(1, t, 1) - gate(in.alpha) * at::bmm(k.transpose(1, 2), S);
    M = gate(in.mu) * M - gate(in.eta) * at::bmm(k, r);
    S = gate(in.alpha) * S - gate(in.beta) * M;
    o.push_back(in.scale * at::bmm(in.q.narrow(1, t, 1), S));
  }
  return at::cat(o, 1);
}

/// Chunks of 64 tokens with the exact masks; T is a multiple of 64.
at::Tensor chunkwise(const Inputs& in) {
  constexpr int64_t C = 64;
  const int64_t N = in.q.size(0), T = in.q.size(1), K = in.q.size(2), V = in.v.size(2);
  const int64_t chunks = T / C;
  MDN_CHECK(T % C == 0, "{} tokens: not a multiple of {}", T, C);
  const auto rows = [&](const at::Tensor& x) { return x.view({N, chunks, C, -1}); };
  const auto gate = [&](const at::Tensor& x) { return x.view({N, chunks, C}); };
  const at::Tensor q = rows(in.q), k = rows(in.k), v = rows(in.v);
  const at::Tensor alpha = gate(in.alpha), mu = gate(in.mu), beta = gate(in.beta);
  const at::Tensor eta = gate(in.eta).unsqueeze(2);  // of columns

  // Masks of all chunks at once, row by row; column 0 is the initial M.
  at::Tensor Mu = at::zeros({N, chunks, C + 1});
  Mu.select(2, 0).fill_(1);
  at::Tensor G = at::zeros({N, chunks, C + 1});
  const at::Tensor unit = at::eye(C + 1);
  std::vector<at::Tensor> Mu_rows, G_rows, H_rows;
  for (int64_t t = 0; t < C; ++t) {
    Mu = mu.narrow(2, t, 1) * Mu + unit[t + 1];
    const at::Tensor H = alpha.narrow(2, t, 1) * G;
    G = H + beta.narrow(2, t, 1) * Mu;
    Mu_rows.push_back(Mu);
    G_rows.push_back(G);
    H_rows.push_back(H);
  }
  const at::Tensor G_all = at::stack(G_rows, 2), H_all = at::stack(H_rows, 2);
  const at::Tensor a = at::cumprod(alpha, 2).unsqueeze(3);
  const at::Tensor b = G_all.narrow(3, 0, 1), c = H_all.narrow(3, 0, 1);
  const at::Tensor P = at::matmul(q, k.transpose(2, 3));
  const at::Tensor L = at::matmul(k, k.transpose(2, 3)) * H_all.narrow(3, 1, C);
  const at::Tensor B = L * eta + at::eye(C);
  const at::Tensor PG = P * G_all.narrow(3, 1, C);
  const at::Tensor g = G_all.select(2, C - 1).narrow(2, 1, C).unsqueeze(3);
  const at::Tensor n = Mu_rows.back().narrow(2, 1, C).unsqueeze(3);
  const at::Tensor m = Mu_rows.back().narrow(2, 0, 1).unsqueeze(3);

  at::Tensor S = at::zeros({N, K, V});
  at::Tensor M = at::zeros({N, K, V});
  std::vector<at::Tensor> o;
  for (int64_t i = 0; i < chunks; ++i) {
    const auto of = [&](const at::Tensor& x) { return x.select(1, i); };
    // W = V - a K S + c K M;  (I + L D) R = W;  U = D R
    const at::Tensor W = of(v) - of(a) * at::bmm(of(k), S) + of(c) * at::bmm(of(k), M);
    const at::Tensor R = at::linalg_solve_triangular(of(B), W, false, true, true);
    const at::Tensor U = of(eta).transpose(1, 2) * R;
    // O = scale (a Q S - b Q M + P∘G U)
    o.push_back(in.scale *
                (of(a) * at::bmm(of(q), S) - of(b) * at::bmm(of(q), M) + at::bmm(of(PG), U)));
    // S <- a S - b M + Kᵀ g U;  M <- m M - Kᵀ n U
    const at::Tensor K_t = of(k).transpose(1, 2);
    const at::Tensor S_next =
        of(a).narrow(1, C - 1, 1) * S - of(b).narrow(1, C - 1, 1) * M + at::bmm(K_t, of(g) * U);
    M = of(m) * M - at::bmm(K_t, of(n) * U);
    S = S_next;
  }
  return at::cat(o, 1);
}

using Program = at::Tensor (*)(const Inputs&);

Inputs detached(Inputs in) {
  for (at::Tensor* x : {&in.q, &in.k, &in.v, &in.alpha, &in.mu, &in.eta, &in.beta}) {
    *x = x->detach();
  }
  return in;
}

double time_forward(const Inputs& in, Program program) {
  const Inputs plain = detached(in);
  return time_calls([&] { program(plain); }, 1, 3).median;
}

double time_both(const Inputs& in, Program program) {
  return time_calls(
             [&] {
               for (at::Tensor leaf : in.leaves()) {
                 leaf.mutable_grad().reset();
               }
               program(in).backward(in.d_o);
             },
             1, 3)
      .median;
}

double relative_error(const at::Tensor& x, const at::Tensor& reference) {
  return ((x - reference).norm() / reference.norm()).item<double>();
}

double measure_torch_sgemm() {
  double best = 0;
  for (int64_t n : {1024, 2048}) {
    const at::Tensor a = at::rand({n, n}), b = at::rand({n, n});
    at::Tensor c = at::empty({n, n});
    const double time = time_calls([&] { at::mm_out(c, a, b); }, 0.3, 5).best;
    best = std::max(best, 2.0 * static_cast<double>(n * n * n) / time);
  }
  return best;
}

void bench_case(const test::MomentumDeltaRuleCase& c, bool stepwise_gradient) {
  const Inputs in = make_inputs(c);
  const Calls calls(c, DType::kFloat32);
  const kernels::MomentumDeltaRuleProblem& p = calls.forward.problem;
  // The anchor before and after: on a shared machine it moves from minute to minute.
  const double sgemm_before = measure_torch_sgemm();
  const double forward = time_calls([&] { kernels::cpu::forward(calls.forward); }, 1, 3).median;
  const double both = time_calls(
                          [&] {
                            kernels::cpu::forward(calls.forward);
                            kernels::cpu::backward(calls.backward);
                          },
                          1, 3)
                          .median;
  const double sgemm = std::max(sgemm_before, measure_torch_sgemm());
  // No speed without the right result.
  const at::Tensor o = at::from_blob(calls.forward.o, {c.B, c.T, c.H, c.V}, at::kFloat)
                           .transpose(1, 2)
                           .reshape({c.B * c.H, c.T, c.V});
  const at::Tensor by_chunks = chunkwise(in);
  const double error = relative_error(by_chunks.detach(), o);
  MDN_CHECK(error < 1e-4, "the chunkwise program is off by {}", error);
  const double step_error = relative_error(stepwise(detached(in)), o);
  MDN_CHECK(step_error < 1e-4, "the stepwise program is off by {}", step_error);

  const double step_forward = time_forward(in, stepwise);
  const double chunk_forward = time_forward(in, chunkwise);
  const double chunk_both = time_both(in, chunkwise);
  fmt::print(
      "| {} {},{},{},{},{} | {:.1f} | {:.2f} | {:.0f}% | {:.2f} | {:.0f}% | {:.1f} | {:.1f}x | "
      "{:.1f} "
      "| {:.1f}x | {:.1f} | {:.1f}x |",
      c.name, c.B, c.T, c.H, c.K, c.V, sgemm / 1e9, forward * 1e3,
      100 * forward_flops(p) / forward / sgemm, both * 1e3,
      100 * (forward_flops(p) + backward_flops(p)) / both / sgemm, chunk_forward * 1e3,
      chunk_forward / forward, chunk_both * 1e3, chunk_both / both, step_forward * 1e3,
      step_forward / forward);
  if (stepwise_gradient) {
    const double step_both = time_both(in, stepwise);
    fmt::print(" {:.1f} | {:.1f}x |\n", step_both * 1e3, step_both / both);
  } else {
    fmt::print(" - | - |\n");  // autograd would keep some 10 states for every token
  }
  std::fflush(stdout);
}

void run() {
  fmt::print("{}\nsgemm: libtorch's, the better of 1024^3 and 2048^3, beside each row\n\n",
             describe_cpu());
  fmt::print(
      "| float32 (B,T,H,K,V) | sgemm GFLOP/s | forward ms | of sgemm | forward + backward ms | of "
      "sgemm | "
      "chunkwise forward ms | ratio | forward + backward ms | ratio | stepwise forward ms | "
      "ratio | forward + backward ms | ratio |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
  for (const test::MomentumDeltaRuleCase& c : test::speed_cases()) {
    const int64_t states = c.B * c.T * c.H * c.K * c.V;
    bench_case(c, states <= int64_t{100} << 20);
  }
}

}  // namespace
}  // namespace mdn::bench

int main() {
  mdn::bench::run();
}
