// Long sequences of few heads on CUDA, which are cut into segments that run at once
// (hopper_segments.h): when they are, that a cut call is as right as an uncut one, and what happens
// where the map of a segment cannot be used. Packed sequences are never cut, so that one sequence,
// packed, is the uncut call; nor do blocks share their walks, which has the uncut call's bits.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>

#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/device.h"
#include "mdn/kernels/cuda/momentum_delta_rule/dispatch.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_forward.h"
#include "mdn/kernels/cuda/momentum_delta_rule/hopper_segments.h"
#include "tests/support/momentum_delta_rule_cuda.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleProblem;
using kernels::cuda::choose_segments;
using kernels::cuda::DeviceFacts;
using kernels::cuda::Path;

constexpr DeviceFacts kHopper{
    .index = 0, .major = 9, .minor = 0, .multiprocessors = 132, .shared_memory = 227 << 10};

MomentumDeltaRuleProblem problem_of(int64_t B, int64_t T, int64_t H, int64_t K, int64_t V) {
  MomentumDeltaRuleProblem p;
  p.B = p.N = B;
  p.T = T;
  p.H = p.HV = H;
  p.K = K;
  p.V = V;
  p.dtype = DType::kBFloat16;
  return p;
}

/// The shortest sequence that is cut, in tokens: a multiple of 64 and one more.
int64_t first_cut(int64_t H, int64_t K, int64_t V, bool momentum) {
  for (int64_t T = 64;; T += 64) {
    MomentumDeltaRuleProblem p = problem_of(1, T + 1, H, K, V);
    p.momentum = momentum;
    if (choose_segments(p, kHopper) > 1) {
      return T + 1;
    }
  }
}

TEST(MomentumDeltaRuleSegments, AreChosenFromSizes) {
  EXPECT_EQ(choose_segments(problem_of(8, 4096, 6, 128, 256), kHopper), 1);
  EXPECT_EQ(choose_segments(problem_of(8, 4096, 8, 128, 128), kHopper), 1);
  EXPECT_EQ(choose_segments(problem_of(4, 4096, 6, 256, 512), kHopper), 1);
  EXPECT_EQ(choose_segments(problem_of(1, 256, 8, 128, 128), kHopper), 1);
  EXPECT_EQ(choose_segments(problem_of(1, 32768, 6, 256, 512), kHopper), 1);
  MomentumDeltaRuleProblem packed = problem_of(1, 32768, 8, 128, 128);
  const int64_t cu_seqlens[2] = {0, 32768};
  packed.cu_seqlens = cu_seqlens;
  EXPECT_EQ(choose_segments(packed, kHopper), 1);
  for (const auto& [B, H, K, V] : {std::array<int64_t, 4>{1, 8, 128, 128},
                                   {1, 6, 128, 256},
                                   {2, 4, 64, 64},
                                   {1, 1, 128, 512}}) {
    const MomentumDeltaRuleProblem p = problem_of(B, 32768, H, K, V);
    const int segments = choose_segments(p, kHopper);
    EXPECT_GT(segments, 2);
    EXPECT_LE(kernels::cuda::segment_map_blocks(p, segments), 132);
    EXPECT_LE(B * H * V / 64 * segments, 132);
  }
}

/// The same tokens as packed sequences, a row each.
MomentumDeltaRuleData packed(MomentumDeltaRuleData data) {
  data.c.lengths.assign(static_cast<size_t>(data.c.B), data.c.T);
  data.cu_seqlens = {0};
  for (int64_t b = 0; b < data.c.B; ++b) {
    data.cu_seqlens.push_back((b + 1) * data.c.T);
  }
  data.c.T *= data.c.B;
  data.c.B = 1;
  return data;
}

bool is_cut(const MomentumDeltaRuleData& data, DType dtype) {
  const MomentumDeltaRuleProblem p = data.problem(dtype);
  const DeviceFacts& device = kernels::cuda::device_facts();
  return kernels::cuda::choose(p, device).forward == Path::kHopper &&
         choose_segments(p, device) > 1;
}

/// A cut call may be off by as much as the uncut one. Both errors are norms of many, of which no
/// less than 256 are independent: their ratio stays below 1 + 4 sqrt(2 / (2 * 256))
/// (docs/numerics.md). And by a tenth of the rounding of the inputs' type where that is next to
/// nothing.
void expect_as_right(const MomentumDeltaRuleData& data, DType dtype, bool gradients = true) {
  ASSERT_FALSE(is_cut(packed(data), dtype));
  const Results reference = run_reference(data);
  const Results whole = run_cuda(packed(data), dtype);
  const Results cut = run_cuda(data, dtype);
  const Results again = run_cuda(data, dtype);
  ASSERT_EQ(cut.size(), reference.size());
  for (size_t i = 0; i < reference.size(); ++i) {
    if (!gradients && is_gradient(reference[i].name)) {
      continue;
    }
    const double error = relative_error(cut[i].x, reference[i].x);
    const double allowed =
        1.25 * relative_error(whole[i].x, reference[i].x) + 0.1 * unit_roundoff(dtype);
    EXPECT_LE(error, allowed) << reference[i].name;
    EXPECT_TRUE(cut[i].x == again[i].x) << reference[i].name;  // in every run
  }
}

/// A forward pass and its memory.
struct ForwardCall {
  static constexpr DType kGate = DType::kFloat32;
  DeviceBuffer q, k, v, alpha, mu, eta, beta, pi, S, M, o, saved, workspace;
  kernels::MomentumDeltaRuleForward call;

  ForwardCall(const MomentumDeltaRuleData& data, DType dtype)
      : ForwardCall(data, dtype, kernels::cuda::sizes(data.problem(dtype))) {}
  ForwardCall(const MomentumDeltaRuleData& data, DType dtype,
              const kernels::MomentumDeltaRuleSizes& sizes)
      : q(data.q, dtype),
        k(data.k, dtype),
        v(data.v, dtype),
        alpha(data.alpha, kGate),
        mu(data.mu, kGate),
        eta(data.eta, kGate),
        beta(data.beta, kGate),
        pi(data.pi, kGate),
        S(data.S, kGate),
        M(data.M, kGate),
        o(v.bytes()),
        saved(sizes.saved),
        workspace(sizes.forward_workspace) {
    call.problem = data.problem(dtype);
    call.inputs = {q.get(),   k.get(),    v.get(),  alpha.get(), mu.get(),
                   eta.get(), beta.get(), pi.get(), S.get(),     M.get()};
    call.o = o.get();
    call.saved = saved.get();
    call.workspace = workspace.get();
  }
};

/// How many segments a forward pass found no start for, the most of any sequence and head.
uint32_t unknown_segments(const MomentumDeltaRuleData& data, DType dtype) {
  const ForwardCall forward(data, dtype);
  kernels::cuda::forward(forward.call, nullptr);
  const MomentumDeltaRuleProblem& p = forward.call.problem;
  const auto memory = kernels::cuda::segment_memory(
      p, choose_segments(p, kernels::cuda::device_facts()),
      forward.saved.get<char>() + kernels::cuda::hopper_record_bytes(p));
  std::vector<uint32_t> unknown(static_cast<size_t>(p.N * p.HV));
  MDN_CUDA_CHECK(cudaMemcpy(unknown.data(), memory.unknown, unknown.size() * sizeof(uint32_t),
                            cudaMemcpyDeviceToHost));
  return *std::max_element(unknown.begin(), unknown.end());
}

std::vector<MomentumDeltaRuleCase> segment_cases() {
  std::vector<MomentumDeltaRuleCase> cases;
  const auto add = [&](MomentumDeltaRuleCase c) { cases.push_back(std::move(c)); };
  const int64_t first = first_cut(2, 64, 64, true);
  for (const auto& [name, T] : {std::pair<const char*, int64_t>{"last_uncut", first - 1},
                                {"first_cut", first},
                                {"one_short_of_a_chunk", first + 62},
                                {"whole_chunks", first + 63},
                                {"longer", 2 * first + 17}}) {
    add({.name = name, .T = T, .H = 2, .HV = 2, .K = 64, .V = 64});
  }
  constexpr int64_t T = 3000;
  add({.name = "wide", .T = T, .H = 1, .HV = 1, .K = 128, .V = 128, .gates = Gates::kLayer});
  add({.name = "odd_tiles",
       .T = T,
       .H = 1,
       .HV = 1,
       .K = 128,
       .V = 64,
       .pi = Prediction::kRandom,
       .states = false});
  add({.name = "shared_heads_rows",
       .B = 2,
       .T = T,
       .H = 1,
       .HV = 3,
       .K = 64,
       .V = 128,
       .gates = Gates::kLayer,
       .l2norm = true});
  add({.name = "some_zeros", .T = T, .K = 64, .V = 64, .gates = Gates::kSomeZeros});
  add({.name = "slow_decay", .T = T, .K = 64, .V = 64, .gates = Gates::kSlowDecay});
  add({.name = "slow_decay_correlated",
       .T = T,
       .K = 128,
       .V = 64,
       .gates = Gates::kSlowDecay,
       .key_cosine = 0.95});
  add({.name = "layer_correlated_large",
       .T = T,
       .K = 64,
       .V = 64,
       .gates = Gates::kLayer,
       .key_cosine = 0.95,
       .value_scale = 100,
       .state_scale = 30});
  for (const int64_t K : {64, 128}) {
    add({.name = fmt::format("without_momentum_{}", K),
         .T = T,
         .H = 1,
         .HV = 2,
         .K = K,
         .V = 128,
         .gates = Gates::kNoMomentum,
         .l2norm = true,
         .momentum = false});
  }
  return cases;
}

class SegmentCases : public testing::TestWithParam<MomentumDeltaRuleCase> {};

TEST_P(SegmentCases, CutCallsAreAsRightAsUncutOnes) {
  if (const std::string why = no_cuda_device(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    SCOPED_TRACE(name_of(dtype));
    const MomentumDeltaRuleData data(GetParam(), dtype);
    expect_as_right(data, dtype);
    if (is_cut(data, dtype)) {
      EXPECT_EQ(unknown_segments(data, dtype), 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, SegmentCases, testing::ValuesIn(segment_cases()),
                         [](const auto& given) { return given.param.name; });

TEST(MomentumDeltaRuleSegments, CutCallsAreCapturedInGraphs) {
  if (const std::string why = no_cuda_device(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  constexpr DType kType = DType::kBFloat16;
  const MomentumDeltaRuleData data({.name = "graph", .T = 3000, .K = 64, .V = 64}, kType);
  if (!is_cut(data, kType)) {
    GTEST_SKIP() << "not cut on this device";
  }
  ForwardCall forward(data, kType);
  kernels::cuda::forward(forward.call, nullptr);
  MDN_CUDA_CHECK(cudaDeviceSynchronize());
  const std::vector<unsigned char> direct = forward.o.contents();
  forward.o.fill(0xff);
  forward.workspace.fill(0xff);
  forward.saved.fill(0xff);
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  MDN_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  MDN_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  kernels::cuda::forward(forward.call, stream);
  MDN_CUDA_CHECK(cudaStreamEndCapture(stream, &graph));
  MDN_CUDA_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  for (int i = 0; i < 3; ++i) {
    MDN_CUDA_CHECK(cudaGraphLaunch(replay, stream));
  }
  MDN_CUDA_CHECK(cudaStreamSynchronize(stream));
  EXPECT_TRUE(forward.o.contents() == direct);
  MDN_CUDA_CHECK(cudaGraphExecDestroy(replay));
  MDN_CUDA_CHECK(cudaGraphDestroy(graph));
  MDN_CUDA_CHECK(cudaStreamDestroy(stream));
}

/// Alpha of 1.2 for a third of the tokens, before the first value that is not 0: nothing comes of
/// it in the states, which are 0, and everything in the maps, which pass 2^60 (gradients pass
/// float32).
TEST(MomentumDeltaRuleSegments, MapsThatOverflowAreNotUsed) {
  if (const std::string why = no_cuda_device(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  constexpr DType kType = DType::kBFloat16;
  const MomentumDeltaRuleCase c{
      .name = "growth", .T = 4000, .H = 1, .HV = 1, .K = 128, .V = 128, .states = false};
  for (const int64_t from : {int64_t{0}, c.T / 3}) {
    MomentumDeltaRuleData data(c, kType);
    const int64_t to = from + c.T / 3;
    for (int64_t t = 0; t < to; ++t) {
      std::fill_n(data.v.begin() + t * c.V, c.V, 0.0);
      data.alpha[t] = t < from ? data.alpha[t] : 1.2000000476837158;
      data.eta[t] = t < from ? data.eta[t] : 0;
    }
    if (!is_cut(data, kType)) {
      GTEST_SKIP() << "not cut on this device";
    }
    expect_as_right(data, kType, false);
    EXPECT_GT(unknown_segments(data, kType), 0);
  }
}

/// Blocks that share walks (hopper_recurrence_work.cuh) hand states over as they are.
TEST(MomentumDeltaRuleSharedWalks, HaveTheBitsOfWholeWalks) {
  if (const std::string why = no_cuda_device(); !why.empty()) {
    GTEST_SKIP() << why;
  }
  constexpr DType kType = DType::kBFloat16;
  for (const auto& [B, H, K, V, momentum] : {std::tuple{24, 6, 64, 64, true},
                                             {24, 6, 64, 64, false},
                                             {24, 12, 128, 128, true},
                                             {6, 3, 256, 512, true}}) {
    MomentumDeltaRuleCase c{.name = "shared", .B = B, .T = 70, .H = H, .HV = H, .K = K, .V = V};
    c.gates = momentum ? Gates::kMild : Gates::kNoMomentum;
    c.momentum = momentum;
    SCOPED_TRACE(fmt::format("K {} V {}{}", K, V, momentum ? "" : " without momentum"));
    const MomentumDeltaRuleData data(c, kType);
    const DeviceFacts& device = kernels::cuda::device_facts();
    const auto shares = [&](const MomentumDeltaRuleData& x) {
      return choose_hopper_forward(x.problem(kType), device).shared_walks;
    };
    if (kernels::cuda::choose(data.problem(kType), device).forward != Path::kHopper ||
        !shares(data)) {
      GTEST_SKIP() << "walks are not shared on this device";
    }
    ASSERT_FALSE(shares(packed(data)));
    const Results shared = run_cuda(data, kType), whole = run_cuda(packed(data), kType);
    ASSERT_EQ(shared.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) {
      EXPECT_TRUE(shared[i].x == whole[i].x) << whole[i].name;
    }
  }
}

}  // namespace
}  // namespace mdn::test
