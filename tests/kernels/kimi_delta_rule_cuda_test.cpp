// kimi_delta_rule on CUDA against the reference: the cases of the chunkwise program that the
// kernels take, sizes of their own tiles, and their promises. Everything that is written starts as
// NaN with a guard behind it. Skips where there is no GPU.
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"
#include "tests/support/kimi_delta_rule_cases.h"
#include "tests/support/momentum_delta_rule_cuda.h"

namespace mdn::test {
namespace {

using kernels::KimiDeltaRuleProblem;

constexpr DType kGate = DType::kFloat32;

#define SKIP_WITHOUT_DEVICE()                                   \
  if (const std::string why = no_cuda_device(); !why.empty()) { \
    GTEST_SKIP() << why;                                        \
  }

Results run_cuda(const KimiDeltaRuleData& data, DType dtype) {
  const DeviceBuffer q(data.q, dtype), k(data.k, dtype), v(data.v, dtype), d_o(data.d_o, dtype);
  const DeviceBuffer alpha(data.alpha, kGate), beta(data.beta, kGate), S(data.S, kGate),
      d_S(data.d_S, kGate);
  const DeviceBuffer bounds(data.c.bounds.size() * sizeof(int64_t));
  KimiDeltaRuleProblem p = data.problem(dtype);
  if (p.cu_seqlens != nullptr) {
    MDN_CUDA_CHECK(cudaMemcpy(bounds.get(), p.cu_seqlens, bounds.bytes(), cudaMemcpyHostToDevice));
    p.cu_seqlens = bounds.get<int64_t>();
  }
  const kernels::KimiDeltaRuleSizes sizes = kernels::cuda::sizes(p);
  const kernels::KimiDeltaRuleInputs inputs{.q = q.get(),
                                            .k = k.get(),
                                            .v = v.get(),
                                            .alpha = alpha.get(),
                                            .beta = beta.get(),
                                            .initial_S = S.get()};
  const DeviceBuffer o(v.bytes()), final_S(d_S.bytes()), workspace(sizes.forward_workspace);
  kernels::cuda::forward({.problem = p,
                          .inputs = inputs,
                          .o = o.get(),
                          .final_S = final_S.get(),
                          .workspace = workspace.get()},
                         nullptr);
  const DeviceBuffer d_q(q.bytes()), d_k(k.bytes()), d_v(v.bytes()), d_alpha(alpha.bytes()),
      d_beta(beta.bytes()), d_initial_S(S.bytes()), backward_workspace(sizes.backward_workspace);
  kernels::cuda::backward({.problem = p,
                           .inputs = inputs,
                           .d_o = d_o.get(),
                           .d_final_S = d_S.get(),
                           .d_q = d_q.get(),
                           .d_k = d_k.get(),
                           .d_v = d_v.get(),
                           .d_alpha = d_alpha.get(),
                           .d_beta = d_beta.get(),
                           .d_initial_S = d_initial_S.get(),
                           .workspace = backward_workspace.get()},
                          nullptr);
  MDN_CUDA_CHECK(cudaDeviceSynchronize());
  workspace.check_guard("forward workspace");
  backward_workspace.check_guard("backward workspace");
  Results results;
  const auto add = [&](const char* name, const DeviceBuffer& buffer, DType type) {
    buffer.check_guard(name);
    if (buffer.bytes() > 0) {
      results.push_back({name, buffer.values(type)});
    }
  };
  add("o", o, dtype);
  add("final_S", final_S, kGate);
  add("d_q", d_q, dtype);
  add("d_k", d_k, dtype);
  add("d_v", d_v, dtype);
  add("d_alpha", d_alpha, kGate);
  add("d_beta", d_beta, kGate);
  add("d_initial_S", d_initial_S, kGate);
  return results;
}

/// The shared cases with sizes that the kernels take, and those around their own tiles.
std::vector<KimiDeltaRuleCase> cuda_cases() {
  std::vector<KimiDeltaRuleCase> cases;
  for (const KimiDeltaRuleCase& c : kimi_delta_rule_cases()) {
    if (c.K % 8 == 0 && c.V % 8 == 0) {
      cases.push_back(c);
    }
  }
  const auto add = [&](const KimiDeltaRuleCase& c) { cases.push_back(c); };
  add({.name = "full_tiles", .B = 2, .T = 130, .H = 2, .HV = 2, .K = 128, .V = 128});
  add({.name = "full_tiles_mild", .T = 130, .K = 128, .V = 128, .decay = Decay::kMild});
  add({.name = "full_tiles_mixed", .T = 40, .K = 128, .V = 128, .decay = Decay::kMixed});
  add({.name = "full_tiles_none", .T = 130, .K = 128, .V = 128, .decay = Decay::kNone});
  add({.name = "half_keys", .T = 47, .H = 1, .HV = 2, .K = 64, .V = 128, .l2norm = true});
  add({.name = "more_than_half", .T = 33, .H = 1, .HV = 2, .K = 72, .V = 72, .l2norm = true});
  add({.name = "sixteen", .T = 16, .K = 128, .V = 64, .decay = Decay::kMild});
  add({.name = "fifteen", .T = 15, .K = 128, .V = 64, .decay = Decay::kMild});
  add({.name = "seventeen", .T = 17, .K = 128, .V = 64, .decay = Decay::kMild});
  add({.name = "packed_full",
       .T = 150,
       .H = 1,
       .HV = 3,
       .K = 128,
       .V = 128,
       .bounds = {0, 0, 1, 17, 33, 33, 80, 149, 150, 150},
       .decay = Decay::kMild,
       .l2norm = true});
  add({.name = "correlated_full",
       .T = 130,
       .K = 128,
       .V = 128,
       .decay = Decay::kMild,
       .key_cosine = 0.9,
       .beta = 2});
  return cases;
}

class KimiDeltaRuleCuda : public testing::TestWithParam<KimiDeltaRuleCase> {
 protected:
  void expect_agreement(DType dtype) {
    SKIP_WITHOUT_DEVICE();
    const KimiDeltaRuleData data(GetParam(), dtype);
    const Results reference = run_kimi_reference(data);
    const Results results = run_cuda(data, dtype);
    ASSERT_EQ(results.size(), reference.size());
    const auto allowed = kimi_tolerances(data, dtype, reference);
    EXPECT_EQ(compare(results, reference, allowed), "");
    // What was seen: how far from the bound a change of a kernel has moved.
    for (const auto& [name, tolerance] : allowed) {
      const double error = relative_error(at(results, name), at(reference, name));
      RecordProperty(name, fmt::format("{:.3g} of {:.3g}", error, tolerance));
    }
  }
};

TEST_P(KimiDeltaRuleCuda, BFloat16) {
  expect_agreement(DType::kBFloat16);
}

TEST_P(KimiDeltaRuleCuda, Float16) {
  expect_agreement(DType::kFloat16);
}

INSTANTIATE_TEST_SUITE_P(Cases, KimiDeltaRuleCuda, testing::ValuesIn(cuda_cases()),
                         [](const auto& test) { return test.param.name; });

bool same_bits(const Results& x, const Results& y) {
  bool same = x.size() == y.size();
  for (size_t i = 0; same && i < x.size(); ++i) {
    same = x[i].x == y[i].x;
  }
  return same;
}

TEST(KimiDeltaRuleCudaPromises, SameBitsInEveryRun) {
  SKIP_WITHOUT_DEVICE();
  const KimiDeltaRuleCase c{
      .name = "twice", .B = 2, .T = 70, .H = 2, .HV = 4, .K = 64, .V = 64, .l2norm = true};
  const KimiDeltaRuleData data(c, DType::kBFloat16);
  EXPECT_TRUE(same_bits(run_cuda(data, DType::kBFloat16), run_cuda(data, DType::kBFloat16)));
}

// Every sequence has its own chunks, so what it is packed with changes no bit.
TEST(KimiDeltaRuleCudaPromises, PackedEqualsTheSequenceAlone) {
  SKIP_WITHOUT_DEVICE();
  const KimiDeltaRuleCase c{.name = "packed",
                            .T = 90,
                            .H = 1,
                            .HV = 2,
                            .K = 64,
                            .V = 64,
                            .bounds = {0, 3, 3, 50, 90},
                            .decay = Decay::kMild};
  const KimiDeltaRuleData data(c, DType::kBFloat16);
  const Results together = run_cuda(data, DType::kBFloat16);
  const auto part = [](const std::vector<double>& x, int64_t begin, int64_t end, size_t of) {
    const auto row = static_cast<int64_t>(x.size() / of);
    return std::vector<double>(x.begin() + begin * row, x.begin() + end * row);
  };
  const size_t N = c.bounds.size() - 1;
  for (size_t n = 0; n < N; ++n) {
    const int64_t begin = c.bounds[n], end = c.bounds[n + 1];
    const auto index = static_cast<int64_t>(n);
    if (begin == end) {
      EXPECT_EQ(part(at(together, "final_S"), index, index + 1, N),
                part(data.S, index, index + 1, N));
      EXPECT_EQ(part(at(together, "d_initial_S"), index, index + 1, N),
                part(data.d_S, index, index + 1, N));
      continue;
    }
    KimiDeltaRuleData alone = data;
    alone.c.bounds = {};
    alone.c.T = end - begin;
    for (auto* x : {&alone.q, &alone.k, &alone.v, &alone.alpha, &alone.beta, &alone.d_o}) {
      *x = part(*x, begin, end, static_cast<size_t>(c.T));
    }
    for (auto* x : {&alone.S, &alone.d_S}) {
      *x = part(*x, index, index + 1, N);
    }
    for (const Values& got : run_cuda(alone, DType::kBFloat16)) {
      const bool of_state = got.name == "final_S" || got.name == "d_initial_S";
      const std::vector<double>& whole = at(together, got.name);
      EXPECT_EQ(got.x, of_state ? part(whole, index, index + 1, N)
                                : part(whole, begin, end, static_cast<size_t>(c.T)))
          << got.name << " of " << n;
    }
  }
}

// Token by token in float32 states, with slots out of order and rows that belong to nobody.
TEST(KimiDeltaRuleCudaPromises, StepsEqualTheReference) {
  SKIP_WITHOUT_DEVICE();
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int64_t K : {16, 21, 128, 200}) {
      const KimiDeltaRuleCase c{
          .name = "steps", .B = 2, .T = 12, .H = 2, .HV = 4, .K = K, .V = 37, .l2norm = true};
      const KimiDeltaRuleData data(c, dtype);
      const Results reference = run_kimi_reference(data);
      const int64_t state = c.HV * c.V * c.K;
      std::vector<double> pool(3 * state, std::nan(""));
      std::copy_n(data.S.begin(), state, pool.begin() + 2 * state);
      std::copy_n(data.S.begin() + state, state, pool.begin());
      const DeviceBuffer S(pool, kGate), slots(3 * sizeof(int64_t));
      const int64_t owned[] = {2, 0, -1};
      MDN_CUDA_CHECK(cudaMemcpy(slots.get(), owned, sizeof(owned), cudaMemcpyHostToDevice));
      std::vector<double> o(data.v.size());
      for (int64_t t = 0; t < c.T; ++t) {
        // Row 2 is padding: NaN goes in and nothing comes out.
        const auto token = [&](const std::vector<double>& x) {
          const auto row = static_cast<int64_t>(x.size()) / (c.B * c.T);
          std::vector<double> result(3 * row, std::nan(""));
          for (int64_t b = 0; b < c.B; ++b) {
            std::copy_n(x.begin() + (b * c.T + t) * row, row, result.begin() + b * row);
          }
          return result;
        };
        const DeviceBuffer q(token(data.q), dtype), k(token(data.k), dtype),
            v(token(data.v), dtype), alpha(token(data.alpha), kGate), beta(token(data.beta), kGate),
            out(v.bytes());
        kernels::cuda::step(kernels::KimiDeltaRuleStep{.B = 3,
                                                       .H = c.H,
                                                       .HV = c.HV,
                                                       .K = c.K,
                                                       .V = c.V,
                                                       .dtype = dtype,
                                                       .scale = data.scale,
                                                       .l2norm = true,
                                                       .q = q.get(),
                                                       .k = k.get(),
                                                       .v = v.get(),
                                                       .alpha = alpha.get(),
                                                       .beta = beta.get(),
                                                       .S = S.get(),
                                                       .slots = slots.get<int64_t>(),
                                                       .o = out.get()},
                            nullptr);
        const std::vector<double> row = out.values(dtype);
        out.check_guard("o");
        for (int64_t b = 0; b < c.B; ++b) {
          std::copy_n(row.begin() + b * c.HV * c.V, c.HV * c.V,
                      o.begin() + (b * c.T + t) * c.HV * c.V);
        }
        EXPECT_TRUE(std::isnan(row.back()));
      }
      S.check_guard("S");
      const std::vector<double> after = S.values(kGate);
      std::vector<double> final_S(after.begin() + 2 * state, after.end());
      final_S.insert(final_S.end(), after.begin(), after.begin() + state);
      // Rounding of the state, once a token, and of 16-bit outputs.
      const double allowed = 8 * 0x1p-24 * std::sqrt(static_cast<double>(2 * K + c.T));
      EXPECT_LT(relative_error(o, at(reference, "o")),
                allowed + (dtype == kGate ? 0 : unit_roundoff(dtype)));
      EXPECT_LT(relative_error(final_S, at(reference, "final_S")), allowed);
      EXPECT_TRUE(std::isnan(after[state]) && std::isnan(after[2 * state - 1]));
    }
  }
}

TEST(KimiDeltaRuleCudaPromises, WhatIsNotSupportedIsNamed) {
  SKIP_WITHOUT_DEVICE();
  const auto problem = [](int64_t K, int64_t V, DType dtype) {
    return KimiDeltaRuleData({.name = "refused", .T = 2, .K = K, .V = V}, dtype).problem(dtype);
  };
  EXPECT_EQ(kernels::cuda::unsupported(problem(128, 128, DType::kBFloat16)), "");
  EXPECT_EQ(kernels::cuda::unsupported(problem(12, 16, DType::kBFloat16)),
            "K = 12, V = 16; supported are multiples of 8 up to 128");
  EXPECT_EQ(kernels::cuda::unsupported(problem(16, 136, DType::kFloat16)),
            "K = 16, V = 136; supported are multiples of 8 up to 128");
  EXPECT_EQ(kernels::cuda::unsupported(problem(16, 16, DType::kFloat32)),
            "dtype float32; supported are float16 and bfloat16");
}

}  // namespace
}  // namespace mdn::test
