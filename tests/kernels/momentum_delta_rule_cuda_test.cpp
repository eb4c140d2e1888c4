// momentum_delta_rule on CUDA: the cases of the other backends, and the promises of its own. Skips
// where there is no GPU. With MDN_CUDA_PORTABLE=1 the same cases run on the portable kernels alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/cuda/momentum_delta_rule/dispatch.h"
#include "tests/support/device_rows.h"
#include "tests/support/momentum_delta_rule_cuda.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleStep;
using kernels::cuda::Path;

#define SKIP_WITHOUT_DEVICE()                                   \
  if (const std::string why = no_cuda_device(); !why.empty()) { \
    GTEST_SKIP() << why;                                        \
  }

/// The shared cases, and those that reach code only CUDA has: the shapes of the Hopper kernels with
/// lengths around their chunk of 64, and the portable kernels' widest rows and many windows.
std::vector<MomentumDeltaRuleCase> cuda_cases() {
  std::vector<MomentumDeltaRuleCase> cases = correctness_cases();
  const auto add = [&](MomentumDeltaRuleCase c) { cases.push_back(std::move(c)); };
  for (const auto& [K, V] : {std::pair<int64_t, int64_t>{64, 64},
                             {64, 128},
                             {128, 64},
                             {128, 128},
                             {128, 512},
                             {256, 128},
                             {256, 512}}) {
    add({.name = fmt::format("shape_{}_{}", K, V), .T = 130, .H = 1, .HV = 1, .K = K, .V = V});
  }
  // The other sizes of the Hopper kernels, which "wide" and "wide_key" complete; short, since the
  // tolerances of wide rows take seconds.
  for (const auto& [K, V, T] :
       {std::array<int64_t, 3>{64, 256, 66}, {64, 512, 66}, {256, 256, 24}}) {
    add({.name = fmt::format("shape_{}_{}", K, V), .T = T, .H = 1, .HV = 1, .K = K, .V = V});
  }
  for (int64_t T : {1, 2, 15, 63, 64, 65, 127, 129, 200}) {
    add({.name = fmt::format("tiles_length_{}", T), .T = T, .H = 1, .HV = 2, .K = 128, .V = 128});
  }
  add({.name = "tiles_many_blocks", .B = 4, .T = 70, .H = 6, .HV = 12, .K = 64, .V = 128});
  add({.name = "tiles_packed",
       .T = 0,
       .H = 2,
       .HV = 2,
       .K = 64,
       .V = 128,
       .lengths = {1, 0, 63, 64, 65, 0, 128, 130, 0},
       .pi = Prediction::kRandom});
  add({.name = "tiles_shared_l2norm",
       .B = 2,
       .T = 150,
       .H = 1,
       .HV = 3,
       .K = 128,
       .V = 64,
       .pi = Prediction::kRandom,
       .l2norm = true});
  for (int64_t K : {64, 128, 256}) {
    add({.name = fmt::format("tiles_l2norm_{}", K),
         .B = 2,
         .T = 150,
         .H = 2,
         .HV = 2,
         .K = K,
         .V = 128,
         .l2norm = true});
  }
  add({.name = "tiles_l2norm_packed",
       .T = 0,
       .H = 2,
       .HV = 2,
       .K = 128,
       .V = 64,
       .lengths = {1, 0, 63, 64, 65, 0, 128, 130, 0},
       .l2norm = true});
  add({.name = "tiles_packed_256",
       .T = 0,
       .H = 1,
       .HV = 2,
       .K = 256,
       .V = 64,
       .lengths = {1, 0, 65},
       .pi = Prediction::kRandom,
       .l2norm = true});
  // More chunks and heads than multiprocessors; and a backward pass in two groups of heads.
  add({.name = "tiles_many_items", .B = 24, .T = 20, .H = 6, .HV = 6, .K = 64, .V = 64});
  add({.name = "tiles_head_groups",
       .B = 11,
       .T = 2,
       .H = 6,
       .HV = 6,
       .K = 256,
       .V = 512,
       .states = false,
       .l2norm = true});
  // More walks than multiprocessors, so that blocks share them and hand states over.
  add({.name = "tiles_shared_walks_64", .B = 24, .T = 70, .H = 6, .HV = 6, .K = 64, .V = 64});
  add({.name = "tiles_shared_walks_128",
       .B = 12,
       .T = 66,
       .H = 6,
       .HV = 12,
       .K = 128,
       .V = 128,
       .gates = Gates::kLayer,
       .states = false,
       .value_scale = 100});
  add({.name = "tiles_shared_walks_256",
       .B = 6,
       .T = 66,
       .H = 3,
       .HV = 3,
       .K = 256,
       .V = 512,
       .states = false,
       .l2norm = true});
  add({.name = "tiles_shared_walks_without_momentum",
       .B = 12,
       .T = 66,
       .H = 12,
       .HV = 12,
       .K = 64,
       .V = 128,
       .gates = Gates::kNoMomentum,
       .states = false,
       .momentum = false});
  add({.name = "tiles_no_states", .B = 2, .T = 140, .K = 128, .V = 256, .states = false});
  add({.name = "tiles_layer_gates",
       .T = 300,
       .K = 128,
       .V = 128,
       .gates = Gates::kLayer,
       .l2norm = true});
  add({.name = "tiles_some_zeros", .T = 200, .K = 128, .V = 64, .gates = Gates::kSomeZeros});
  add({.name = "tiles_all_zero", .T = 70, .K = 64, .V = 64, .gates = Gates::kAllZero});
  add({.name = "tiles_large_correlated",
       .T = 200,
       .K = 128,
       .V = 128,
       .gates = Gates::kLayer,
       .key_cosine = 0.95,
       .value_scale = 100});
  for (const auto& [K, V] :
       {std::pair<int64_t, int64_t>{64, 64}, {64, 128}, {128, 64}, {128, 256}, {256, 128}}) {
    add({.name = fmt::format("tiles_without_momentum_{}_{}", K, V),
         .B = 2,
         .T = 150,
         .H = 1,
         .HV = 2,
         .K = K,
         .V = V,
         .gates = Gates::kNoMomentum,
         .pi = K == V ? Prediction::kRandom : Prediction::kTied,
         .l2norm = K == 128,
         .momentum = false});
  }
  add({.name = "tiles_without_momentum_packed",
       .T = 0,
       .H = 2,
       .HV = 2,
       .K = 128,
       .V = 128,
       .lengths = {1, 0, 63, 64, 65, 0, 128, 130, 0},
       .gates = Gates::kNoMomentum,
       .states = false,
       .momentum = false});
  add({.name = "tiles_without_momentum_large",
       .T = 200,
       .K = 128,
       .V = 128,
       .gates = Gates::kNoMomentum,
       .key_cosine = 0.95,
       .value_scale = 100,
       .momentum = false});
  add({.name = "tiles_cut_into_segments",
       .T = 2100,
       .H = 1,
       .HV = 1,
       .K = 64,
       .V = 64,
       .gates = Gates::kSlowDecay,
       .l2norm = true});
  add({.name = "several_windows", .T = 400, .H = 2, .HV = 4, .K = 160, .V = 288});
  add({.name = "widest", .T = 40, .H = 1, .HV = 1, .K = 512, .V = 512});
  add({.name = "wide_and_odd", .T = 40, .H = 1, .HV = 2, .K = 301, .V = 70, .l2norm = true});
  return cases;
}

const MomentumDeltaRuleCase& case_named(const std::string& name) {
  static const std::vector<MomentumDeltaRuleCase> cases = cuda_cases();
  for (const MomentumDeltaRuleCase& c : cases) {
    if (c.name == name) {
      return c;
    }
  }
  MDN_THROW("no case {}", name);
}

void expect_same_bits(const Results& x, const Results& y) {
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_TRUE(x[i].x == y[i].x) << x[i].name;
  }
}

std::string case_name(const testing::TestParamInfo<MomentumDeltaRuleCase>& info) {
  return info.param.name;
}

/// What the kernels that run on this device may be off by: float32 throughout, or products of
/// operands rounded to 16 bits where the Hopper kernels run.
std::vector<std::pair<std::string, double>> allowed_errors(const MomentumDeltaRuleData& data,
                                                           DType dtype, const Results& reference) {
  const auto choice = kernels::cuda::choose(data.problem(dtype), kernels::cuda::device_facts());
  if (choice.forward != Path::kHopper) {
    return tolerances(data, dtype, reference);
  }
  auto allowed = tolerances(data, dtype, reference, {64}, true);
  if (choice.backward != Path::kHopper) {
    const auto exact = tolerances(data, dtype, reference);
    for (size_t i = 0; i < allowed.size(); ++i) {
      if (is_gradient(allowed[i].first)) {
        allowed[i] = exact[i];
      }
    }
  }
  return allowed;
}

/// Whether a result that float16 calls store in float16 is too large for it.
bool passes_float16(const std::vector<double>& x) {
  return std::any_of(x.begin(), x.end(), [](double value) { return std::abs(value) > 65504; });
}

class CudaCases : public testing::TestWithParam<MomentumDeltaRuleCase> {
 protected:
  void expect_agreement(DType dtype) {
    SKIP_WITHOUT_DEVICE();
    const MomentumDeltaRuleData data(GetParam(), dtype);
    const Results reference = run_reference(data);
    const Results results = run_cuda(data, dtype);
    auto allowed = allowed_errors(data, dtype, reference);
    const bool gradients_pass = passes_float16(at(reference, "d_q")) ||
                                passes_float16(at(reference, "d_k")) ||
                                passes_float16(at(reference, "d_v"));
    if (dtype == DType::kFloat16 && gradients_pass) {
      // They saturate, and so does what the backward pass keeps in float16 on its way to all
      // others.
      ASSERT_FALSE(passes_float16(at(reference, "o"))) << "the case tests nothing";
      std::erase_if(allowed, [](const auto& entry) { return is_gradient(entry.first); });
    }
    EXPECT_EQ(compare(results, reference, allowed), "");
    expect_same_bits(run_cuda(data, dtype), results);  // in every run
  }
};

TEST_P(CudaCases, Float32AgreesWithReference) {
  expect_agreement(DType::kFloat32);
}

TEST_P(CudaCases, BFloat16AgreesWithReference) {
  expect_agreement(DType::kBFloat16);
}

TEST_P(CudaCases, Float16AgreesWithReference) {
  expect_agreement(DType::kFloat16);
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, CudaCases, testing::ValuesIn(cuda_cases()), case_name);

std::vector<MomentumDeltaRuleCase> step_cases() {
  std::vector<MomentumDeltaRuleCase> cases = cuda_cases();
  std::erase_if(cases, [](const MomentumDeltaRuleCase& c) {
    return !c.lengths.empty() || !c.states || c.T > 100;
  });
  return cases;
}

class CudaStepCases : public testing::TestWithParam<MomentumDeltaRuleCase> {};

TEST_P(CudaStepCases, StepsEqualForward) {
  SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    const MomentumDeltaRuleData data(GetParam(), dtype);
    const Results reference = run_reference(data);
    auto allowed = tolerances(data, dtype, reference);
    std::erase_if(allowed, [](const auto& entry) { return is_gradient(entry.first); });
    EXPECT_EQ(compare(run_cuda_steps(data, dtype, DType::kFloat32), reference, allowed), "")
        << name_of(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, CudaStepCases, testing::ValuesIn(step_cases()),
                         case_name);

TEST(MomentumDeltaRuleCuda, Float16StatesAreOffByTheirRoundingAlone) {
  SKIP_WITHOUT_DEVICE();
  for (const char* name : {"length_63", "wide", "odd_channels", "shared_heads_l2norm", "widest"}) {
    SCOPED_TRACE(name);
    const MomentumDeltaRuleData data(case_named(name), DType::kFloat32);
    const Results exact = run_reference(data);
    // A state is rounded once a token; old errors decay with the state, so that each of S and M
    // holds a few roundings, and the predictions that read them some more.
    const double allowed = 8 * unit_roundoff(DType::kFloat16);
    for (const Values& values : run_cuda_steps(data, DType::kFloat32, DType::kFloat16)) {
      const double error = relative_error(values.x, at(exact, values.name));
      EXPECT_LT(error, allowed) << values.name;
      EXPECT_GT(error, unit_roundoff(DType::kFloat16) / 16) << values.name;  // they were rounded
    }
  }
}

/// A step of one sequence in a pool of slots.
struct PoolStep {
  MomentumDeltaRuleData data;
  DeviceBuffer q, k, v, alpha, mu, eta, beta, o;
  MomentumDeltaRuleStep call;

  PoolStep(const MomentumDeltaRuleCase& c, double gate_eta = -1)
      : data(c, DType::kFloat32),
        q(data.q, DType::kFloat32),
        k(data.k, DType::kFloat32),
        v(data.v, DType::kFloat32),
        alpha(data.alpha, DType::kFloat32),
        mu(data.mu, DType::kFloat32),
        eta(gate_eta < 0 ? data.eta : std::vector<double>(data.eta.size(), gate_eta),
            DType::kFloat32),
        beta(data.beta, DType::kFloat32),
        o(v.bytes()) {
    call.B = c.B;
    call.H = c.H;
    call.HV = c.HV;
    call.K = c.K;
    call.V = c.V;
    call.scale = data.scale;
    call.q = q.get();
    call.k = k.get();
    call.v = v.get();
    call.alpha = alpha.get();
    call.mu = mu.get();
    call.eta = eta.get();
    call.beta = beta.get();
    call.o = o.get();
  }
};

void expect_step_in_slots(const MomentumDeltaRuleCase& c) {
  PoolStep step(c);
  const DeviceBuffer S(step.data.S, DType::kFloat32), M(step.data.M, DType::kFloat32);
  step.call.S = S.get();
  step.call.M = M.get();
  kernels::cuda::step(step.call, nullptr);  // sequence b in slot b
  const std::vector<double> direct = step.o.values(DType::kFloat32);

  const std::vector<int64_t> slots = {3, -1, 0, 5, -9};
  const int64_t state = c.HV * c.V * c.K;
  std::vector<double> pool_S(7 * state, 0.5), pool_M(7 * state, -0.5);
  for (int64_t b = 0; b < c.B; ++b) {
    if (slots[b] >= 0) {
      std::copy_n(step.data.S.begin() + b * state, state, pool_S.begin() + slots[b] * state);
      std::copy_n(step.data.M.begin() + b * state, state, pool_M.begin() + slots[b] * state);
    }
  }
  const DeviceBuffer slots_S(pool_S, DType::kFloat32), slots_M(pool_M, DType::kFloat32);
  DeviceBuffer slots_buffer(slots.size() * sizeof(int64_t));
  MDN_CUDA_CHECK(
      cudaMemcpy(slots_buffer.get(), slots.data(), slots_buffer.bytes(), cudaMemcpyHostToDevice));
  step.call.S = slots_S.get();
  step.call.M = slots_M.get();
  step.call.slots = slots_buffer.get<int64_t>();
  step.o.fill(0x11);
  const std::vector<double> untouched = step.o.values(DType::kFloat32);
  kernels::cuda::step(step.call, nullptr);
  const std::vector<double> o = step.o.values(DType::kFloat32);
  const std::vector<double> S_after = slots_S.values(DType::kFloat32);
  const std::vector<double> M_after = slots_M.values(DType::kFloat32);
  const std::vector<double> S_direct = S.values(DType::kFloat32);
  const std::vector<double> M_direct = M.values(DType::kFloat32);
  std::vector<bool> used(7, false);
  for (int64_t b = 0; b < c.B; ++b) {
    const int64_t row = c.HV * c.V;
    const auto& expected = slots[b] < 0 ? untouched : direct;
    EXPECT_TRUE(
        std::equal(o.begin() + b * row, o.begin() + (b + 1) * row, expected.begin() + b * row));
    if (slots[b] >= 0) {
      used[slots[b]] = true;
      EXPECT_TRUE(std::equal(S_direct.begin() + b * state, S_direct.begin() + (b + 1) * state,
                             S_after.begin() + slots[b] * state));
      EXPECT_TRUE(std::equal(M_direct.begin() + b * state, M_direct.begin() + (b + 1) * state,
                             M_after.begin() + slots[b] * state));
    }
  }
  for (int64_t slot = 0; slot < 7; ++slot) {
    for (int64_t i = slot * state; !used[slot] && i < (slot + 1) * state; ++i) {
      ASSERT_EQ(S_after[i], 0.5);
      ASSERT_EQ(M_after[i], -0.5);
    }
  }
}

TEST(MomentumDeltaRuleCuda, StepUsesSlots) {
  SKIP_WITHOUT_DEVICE();
  expect_step_in_slots({.name = "any_sizes", .B = 5, .H = 2, .HV = 4, .K = 40, .V = 24});
  expect_step_in_slots({.name = "whole_tiles", .B = 5, .H = 2, .HV = 4, .K = 128, .V = 64});
}

TEST(MomentumDeltaRuleCuda, Float16StatesSaturate) {
  SKIP_WITHOUT_DEVICE();
  for (int64_t K : {16, 13, 128}) {  // pieces of 16 bytes, single elements, whole tiles
    MomentumDeltaRuleCase c{.name = "saturation", .H = 1, .HV = 1, .K = K, .V = 16};
    c.value_scale = 1e6;
    c.state_scale = 0;
    PoolStep step(c, 1.0);
    const DeviceBuffer S(step.data.S, DType::kFloat16), M(step.data.M, DType::kFloat16);
    step.call.S = S.get();
    step.call.M = M.get();
    step.call.state_dtype = DType::kFloat16;
    kernels::cuda::step(step.call, nullptr);
    int saturated = 0;
    for (double value : M.values(DType::kFloat16)) {
      EXPECT_LE(std::abs(value), 65504);
      saturated += std::abs(value) == 65504;
    }
    EXPECT_GT(saturated, 10);
    for (double value : S.values(DType::kFloat16)) {
      EXPECT_LE(std::abs(value), 65504);
    }
  }
}

TEST(MomentumDeltaRuleCuda, StepReachesSlotsPastTwoToTheThirtyFirstElement) {
  SKIP_WITHOUT_DEVICE();
  const MomentumDeltaRuleCase c{.name = "far", .H = 2, .HV = 4, .K = 128, .V = 256};
  const int64_t state = c.HV * c.V * c.K;
  const int64_t slot = (int64_t{1} << 31) / state + 3;
  const size_t bytes = static_cast<size_t>(slot + 1) * state * sizeof(float);
  size_t free_bytes = 0, total = 0;
  MDN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  if (free_bytes < 2 * bytes + (size_t{1} << 30)) {
    GTEST_SKIP() << "needs " << 2 * bytes << " bytes of device memory, " << free_bytes << " free";
  }
  PoolStep step(c);
  const DeviceBuffer near_S(step.data.S, DType::kFloat32), near_M(step.data.M, DType::kFloat32);
  const DeviceBuffer far_S(bytes), far_M(bytes);
  float* S = far_S.get<float>() + slot * state;
  float* M = far_M.get<float>() + slot * state;
  MDN_CUDA_CHECK(cudaMemcpy(S, near_S.get(), near_S.bytes(), cudaMemcpyDeviceToDevice));
  MDN_CUDA_CHECK(cudaMemcpy(M, near_M.get(), near_M.bytes(), cudaMemcpyDeviceToDevice));
  DeviceBuffer slots(sizeof(int64_t));
  MDN_CUDA_CHECK(cudaMemcpy(slots.get(), &slot, sizeof(slot), cudaMemcpyHostToDevice));
  step.call.S = near_S.get();
  step.call.M = near_M.get();
  kernels::cuda::step(step.call, nullptr);
  const std::vector<double> o = step.o.values(DType::kFloat32);
  step.call.S = far_S.get();
  step.call.M = far_M.get();
  step.call.slots = slots.get<int64_t>();
  kernels::cuda::step(step.call, nullptr);
  EXPECT_TRUE(step.o.values(DType::kFloat32) == o);
  const DeviceBuffer back(near_S.bytes());
  for (const auto& [far, near] : {std::pair{S, &near_S}, {M, &near_M}}) {
    MDN_CUDA_CHECK(cudaMemcpy(back.get(), far, back.bytes(), cudaMemcpyDeviceToDevice));
    EXPECT_TRUE(back.values(DType::kFloat32) == near->values(DType::kFloat32));
  }
}

/// Packed sequences of equal content, so many that tensors pass 2^31 elements: every sequence must
/// have the bits of the first one, in every output. A sequence has 15 2^13 elements, which divides
/// neither 2^31 nor 2^32: an offset that wraps would read other numbers.
void expect_rows_agree(DType dtype) {
  const MomentumDeltaRuleCase c{
      .name = "row", .T = 64, .H = 15, .HV = 15, .K = 128, .V = 128, .states = false};
  const MomentumDeltaRuleData data(c, dtype);
  const int64_t row_elements = c.T * c.HV * c.V;
  const int64_t rows = (int64_t{1} << 31) / row_elements + 4;
  MomentumDeltaRuleProblem p = data.problem(dtype);
  p.T = c.T * rows;
  p.N = rows;
  std::vector<int64_t> cu_seqlens(rows + 1);
  for (int64_t n = 0; n <= rows; ++n) {
    cu_seqlens[n] = n * c.T;
  }
  const DeviceBuffer cu(cu_seqlens.size() * sizeof(int64_t));
  MDN_CUDA_CHECK(cudaMemcpy(cu.get(), cu_seqlens.data(), cu.bytes(), cudaMemcpyHostToDevice));
  p.cu_seqlens = cu.get<int64_t>();
  const kernels::MomentumDeltaRuleSizes sizes = kernels::cuda::sizes(p);
  const size_t tensor = static_cast<size_t>(rows) * row_elements * size_of(dtype);
  const size_t gates = static_cast<size_t>(rows) * c.T * c.HV * sizeof(float);
  size_t free_bytes = 0, total = 0;
  MDN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  const size_t forward_bytes = 4 * tensor + 4 * gates + sizes.forward_workspace + sizes.saved;
  const size_t backward_bytes = 4 * tensor + 4 * gates + sizes.backward_workspace;
  const size_t slack = size_t{1} << 30;
  if (free_bytes < forward_bytes + slack) {
    GTEST_SKIP() << "needs " << forward_bytes << " bytes of device memory, " << free_bytes
                 << " free";
  }
  const auto repeated = [&](const std::vector<double>& x, DType type, size_t bytes) {
    auto buffer = std::make_unique<DeviceBuffer>(bytes);
    const std::vector<unsigned char> row = encode(x, type);
    MDN_CUDA_CHECK(cudaMemcpy(buffer->get(), row.data(), row.size(), cudaMemcpyHostToDevice));
    repeat_row(buffer->get(), row.size(), rows);
    return buffer;
  };
  const auto q = repeated(data.q, dtype, tensor), k = repeated(data.k, dtype, tensor),
             v = repeated(data.v, dtype, tensor);
  const auto gate = [&](const std::vector<double>& x) {
    return repeated(x, DType::kFloat32, gates);
  };
  const auto alpha = gate(data.alpha), mu = gate(data.mu), eta = gate(data.eta),
             beta = gate(data.beta);
  const DeviceBuffer o(tensor), saved(sizes.saved);
  MomentumDeltaRuleForward forward;
  forward.problem = p;
  forward.inputs = {q->get(),   k->get(),    v->get(), alpha->get(), mu->get(),
                    eta->get(), beta->get(), nullptr,  nullptr,      nullptr};
  forward.o = o.get();
  forward.saved = saved.get();
  {
    const DeviceBuffer workspace(sizes.forward_workspace);
    forward.workspace = workspace.get();
    kernels::cuda::forward(forward, nullptr);
    MDN_CUDA_CHECK(cudaDeviceSynchronize());
  }
  const size_t row_bytes = row_elements * size_of(dtype);
  const size_t gate_bytes = c.T * c.HV * sizeof(float);
  EXPECT_EQ(count_different_words(o.get(), row_bytes, rows), 0);
  const Results reference = run_reference(data);
  const auto allowed = allowed_errors(data, dtype, reference);
  const auto first_row = [&](const DeviceBuffer& x, DType type, size_t bytes) {
    std::vector<unsigned char> row(bytes);
    MDN_CUDA_CHECK(cudaMemcpy(row.data(), x.get(), bytes, cudaMemcpyDeviceToHost));
    return decode(row.data(), bytes / size_of(type), type);
  };
  EXPECT_EQ(compare({{"o", first_row(o, dtype, row_bytes)}}, reference, {allowed[0]}), "");

  MDN_CUDA_CHECK(cudaMemGetInfo(&free_bytes, &total));
  if (free_bytes < backward_bytes + slack) {
    GTEST_SKIP() << "the forward pass is right; the backward pass needs " << backward_bytes
                 << " bytes of device memory more, " << free_bytes << " are free";
  }
  const auto d_o = repeated(data.d_o, dtype, tensor);
  const DeviceBuffer d_q(tensor), d_k(tensor), d_v(tensor), d_alpha(gates), d_mu(gates),
      d_eta(gates), d_beta(gates), workspace(sizes.backward_workspace);
  MomentumDeltaRuleBackward backward;
  backward.problem = p;
  backward.inputs = forward.inputs;
  backward.saved = saved.get();
  backward.d_o = d_o->get();
  backward.d_q = d_q.get();
  backward.d_k = d_k.get();
  backward.d_v = d_v.get();
  backward.d_alpha = d_alpha.get();
  backward.d_mu = d_mu.get();
  backward.d_eta = d_eta.get();
  backward.d_beta = d_beta.get();
  backward.workspace = workspace.get();
  kernels::cuda::backward(backward, nullptr);
  MDN_CUDA_CHECK(cudaDeviceSynchronize());
  const std::pair<const char*, const DeviceBuffer*> outputs[] = {
      {"d_q", &d_q},   {"d_k", &d_k},     {"d_v", &d_v},      {"d_alpha", &d_alpha},
      {"d_mu", &d_mu}, {"d_eta", &d_eta}, {"d_beta", &d_beta}};
  for (const auto& [name, buffer] : outputs) {
    const bool is_gate = buffer->bytes() == gates;
    const size_t bytes = is_gate ? gate_bytes : row_bytes;
    EXPECT_EQ(count_different_words(buffer->get(), bytes, rows), 0) << name;
    for (const auto& [allowed_name, tolerance] : allowed) {
      if (allowed_name == name) {
        const DType type = is_gate ? DType::kFloat32 : dtype;
        EXPECT_EQ(
            compare({{name, first_row(*buffer, type, bytes)}}, reference, {{name, tolerance}}), "");
      }
    }
  }
}

TEST(MomentumDeltaRuleCuda, TensorsPastTwoToTheThirtyFirstElement) {
  SKIP_WITHOUT_DEVICE();
  expect_rows_agree(DType::kBFloat16);
}

void expect_finite(const Results& results) {
  for (const Values& values : results) {
    EXPECT_TRUE(std::all_of(values.x.begin(), values.x.end(), [](double x) {
      return std::isfinite(x);
    })) << values.name;
  }
}

/// Gates at the end of their range, with which states grow without bound (with random keys to 1e22
/// here, and gradients of keys to 1e23), and large values: whatever 16 bits hold of that, nothing
/// may be Inf or NaN while float32 could hold it.
TEST(MomentumDeltaRuleCuda, GrowingStatesGiveFiniteNumbers) {
  SKIP_WITHOUT_DEVICE();
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (double cosine : {0.0, 0.95}) {
      SCOPED_TRACE(fmt::format("{}, key cosine {}", name_of(dtype), cosine));
      MomentumDeltaRuleData data({.name = "growth",
                                  .T = 256,
                                  .H = 1,
                                  .HV = 1,
                                  .K = 128,
                                  .V = 128,
                                  .key_cosine = cosine,
                                  .value_scale = 100},
                                 dtype);
      for (std::vector<double>* gate : {&data.alpha, &data.mu, &data.beta}) {
        std::fill(gate->begin(), gate->end(), 1.0);
      }
      std::fill(data.eta.begin(), data.eta.end(), 2.0);
      expect_finite(run_cuda(data, dtype));
      if (dtype == DType::kFloat16) {
        expect_finite(run_cuda_steps(data, dtype, DType::kFloat32));
        expect_finite(run_cuda_steps(data, dtype, DType::kFloat16));
      }
    }
  }
}

TEST(MomentumDeltaRuleDispatch, ChoosesBySizesTypeAndDevice) {
  using kernels::cuda::choose;
  using kernels::cuda::DeviceFacts;
  const auto device = [](int major, int minor) {
    return DeviceFacts{.index = 0,
                       .major = major,
                       .minor = minor,
                       .multiprocessors = 132,
                       .shared_memory = 227 << 10};
  };
  const auto problem = [](int64_t K, int64_t V, DType dtype) {
    MomentumDeltaRuleProblem p;
    p.T = 100;
    p.K = K;
    p.V = V;
    p.dtype = dtype;
    return p;
  };
  const auto described = [](const MomentumDeltaRuleProblem& p, const DeviceFacts& facts) {
    return describe(choose(p, facts));
  };
  const std::string portable = "forward portable, backward portable";
  const bool kept_off = described(problem(128, 128, DType::kBFloat16), device(9, 0)) == portable;
  EXPECT_EQ(kept_off, std::getenv("MDN_CUDA_PORTABLE") != nullptr &&
                          std::string(std::getenv("MDN_CUDA_PORTABLE")) != "0");
  const std::string hopper = kept_off ? portable : "forward hopper, backward hopper";
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int64_t K : {64, 128, 256}) {
      for (int64_t V : {64, 128, 256, 512}) {
        EXPECT_EQ(described(problem(K, V, dtype), device(9, 0)), hopper);
        for (const auto& [major, minor] : {std::pair{8, 0}, {8, 6}, {8, 9}, {10, 0}, {12, 0}}) {
          EXPECT_EQ(described(problem(K, V, dtype), device(major, minor)), portable);
        }
      }
    }
    for (const auto& [K, V] : {std::pair{96, 128}, {512, 512}, {128, 96}, {1, 1}}) {
      EXPECT_EQ(described(problem(K, V, dtype), device(9, 0)), portable);
    }
  }
  EXPECT_EQ(described(problem(128, 128, DType::kFloat32), device(9, 0)), portable);

  const MomentumDeltaRuleProblem p = problem(128, 128, DType::kBFloat16);
  EXPECT_EQ(kernels::cuda::unsupported(p, device(8, 0)), "");
  EXPECT_EQ(kernels::cuda::unsupported(p, device(7, 5)),
            "the GPU has compute capability 7.5; supported are 8.0 and above");
}

/// The message of the error that `body` throws.
template <class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(MomentumDeltaRuleCuda, BadCallsAreRejected) {
  SKIP_WITHOUT_DEVICE();
  const DeviceBuffer memory(1 << 16);
  void* any = memory.get();
  MomentumDeltaRuleForward good;
  good.problem.T = 4;
  good.problem.K = good.problem.V = 4;
  good.inputs = {any, any, any, any, any, any, any, nullptr, nullptr, nullptr};
  good.o = any;
  good.workspace = any;
  const auto message = [&](auto spoil) {
    MomentumDeltaRuleForward call = good;
    spoil(call);
    return message_of([&] { kernels::cuda::forward(call, nullptr); });
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  expect(message([](auto& c) { c.problem.dtype = DType::kFloat64; }),
         "dtype float64; supported are float32, float16 and bfloat16");
  expect(message([](auto& c) { c.problem.K = 513; }),
         "K = 513, V = 4; supported are 1 to 512 each");
  expect(message([](auto& c) { c.problem.V = 1000; }), "V = 1000; supported are 1 to 512");
  expect(message([](auto& c) { c.inputs.q = nullptr; }), "q is missing");
  expect(message([](auto& c) { c.workspace = static_cast<char*>(c.workspace) + 8; }),
         "not on a multiple of 256 bytes");
  EXPECT_EQ(message([](auto&) {}), "no error");
  MDN_CUDA_CHECK(cudaDeviceSynchronize());

  MomentumDeltaRuleBackward backward;
  backward.problem = good.problem;
  backward.inputs = good.inputs;
  backward.d_o = backward.d_q = backward.d_k = backward.d_v = any;
  backward.d_alpha = backward.d_mu = backward.d_eta = backward.d_beta = any;
  expect(message_of([&] { kernels::cuda::backward(backward, nullptr); }), "no workspace was given");

  MomentumDeltaRuleStep step;
  step.K = step.V = 4;
  step.q = step.k = step.v = step.alpha = step.mu = step.eta = step.beta = any;
  step.S = step.M = step.o = any;
  step.state_dtype = DType::kBFloat16;
  expect(message_of([&] { kernels::cuda::step(step, nullptr); }), "states of bfloat16");
  step.state_dtype = DType::kFloat32;
  step.K = 600;
  expect(message_of([&] { kernels::cuda::step(step, nullptr); }), "supported are 1 to 512 each");
}

}  // namespace
}  // namespace mdn::test
