// momentum_delta_rule: the CPU backend against the reference, and the promises of the contract.
#include <gtest/gtest.h>
#include <hwy/targets.h>
#include <omp.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "tests/support/momentum_delta_rule_cases.h"
#include "tests/support/momentum_delta_rule_rounding.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleProblem;
using kernels::MomentumDeltaRuleStep;

std::string case_name(const testing::TestParamInfo<MomentumDeltaRuleCase>& info) {
  return info.param.name;
}

class Threads {
 public:
  explicit Threads(int count) : before_(num_threads()) { omp_set_num_threads(count); }
  ~Threads() { omp_set_num_threads(before_); }

 private:
  int before_;
};

const MomentumDeltaRuleCase& case_named(const std::string& name) {
  for (const MomentumDeltaRuleCase& c : correctness_cases()) {
    if (c.name == name) {
      return c;
    }
  }
  MDN_THROW("no case {}", name);
}

/// Results of the same bits, NaN nowhere.
void expect_same_bits(const Results& x, const Results& y) {
  ASSERT_EQ(x.size(), y.size());
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_TRUE(x[i].x == y[i].x) << x[i].name;
  }
}

class Cases : public testing::TestWithParam<MomentumDeltaRuleCase> {
 protected:
  void expect_agreement(DType dtype) {
    const MomentumDeltaRuleData data(GetParam(), dtype);
    const Results reference = run_reference(data);
    const Results results = run_cpu(data, dtype);
    EXPECT_EQ(compare(results, reference, tolerances(data, dtype, reference, {64})), "");
  }
};

TEST_P(Cases, Float32AgreesWithReference) {
  expect_agreement(DType::kFloat32);
}

TEST_P(Cases, BFloat16AgreesWithReference) {
  expect_agreement(DType::kBFloat16);
}

TEST_P(Cases, SameBitsForAnyNumberOfThreads) {
  const MomentumDeltaRuleData data(GetParam(), DType::kFloat32);
  // With 8 threads there are fewer heads than threads in most cases: the backward pass then
  // spreads stage by stage.
  Results first;
  for (int count : {1, 2, 3, 8}) {
    SCOPED_TRACE(count);
    const Threads threads(count);
    const Results results = run_cpu(data, DType::kFloat32);
    if (count == 1) {
      first = results;
    }
    expect_same_bits(results, first);
  }
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, Cases, testing::ValuesIn(correctness_cases()),
                         case_name);

// The simulation that tolerances rest on (tests/support/momentum_delta_rule_rounding.h).
TEST(MomentumDeltaRule, SimulationWithoutRoundingIsTheReference) {
  for (const char* name : {"length_65", "shared_heads_l2norm", "packed", "some_zeros_random_pi",
                           "several_segments_no_states", "one_channel", "without_momentum"}) {
    SCOPED_TRACE(name);
    const MomentumDeltaRuleData data(case_named(name), DType::kFloat64);
    const Results reference = run_reference(data);
    for (const int64_t chunk : {1, 16, 64}) {
      for (const Format& operands : {Format{}, Format{50}}) {  // by substitution, by the inverse
        const Results results = run_with_rounding(data, {0, operands, operands, chunk}, 1);
        ASSERT_EQ(results.size(), reference.size());
        for (const Values& values : results) {
          EXPECT_LT(relative_error(values.x, at(reference, values.name)), 1e-13) << values.name;
        }
      }
    }
  }
}

TEST(MomentumDeltaRule, SimulatedRoundingIsOfTheSizeAskedFor) {
  const MomentumDeltaRuleData data(case_named("length_130"), DType::kFloat64);
  const Results reference = run_reference(data);
  for (const Rounding& rounding : {Rounding{1e-6}, Rounding{0, {20}, {20}}}) {
    for (const Values& values : run_with_rounding(data, rounding, 1)) {
      const double error = relative_error(values.x, at(reference, values.name));
      EXPECT_GT(error, 1e-7) << values.name;
      EXPECT_LT(error, 2e-5) << values.name;
    }
  }
}

TEST(MomentumDeltaRule, GradientsOfInitialStatesAreOptional) {
  for (const char* name : {"length_65", "several_segments_no_states"}) {
    MomentumDeltaRuleData data(case_named(name), DType::kFloat32);
    Results all = run_cpu(data, DType::kFloat32);
    data.wants_initial_gradient = false;
    all.resize(all.size() - 2);
    expect_same_bits(run_cpu(data, DType::kFloat32), all);
  }
}

/// Tokens [begin, end) of a batch of one, as a problem of their own.
MomentumDeltaRuleData cut(const MomentumDeltaRuleData& data, int64_t begin, int64_t end) {
  MomentumDeltaRuleData part = data;
  part.c.T = end - begin;
  part.c.lengths.clear();
  part.cu_seqlens.clear();
  part.N = 1;
  const auto rows = [&](std::vector<double>& x, int64_t columns) {
    if (!x.empty()) {
      x = std::vector<double>(x.begin() + begin * columns, x.begin() + end * columns);
    }
  };
  rows(part.q, part.c.H * part.c.K);
  rows(part.k, part.c.H * part.c.K);
  rows(part.v, part.c.HV * part.c.V);
  rows(part.d_o, part.c.HV * part.c.V);
  for (auto* gate : {&part.alpha, &part.mu, &part.eta, &part.beta, &part.pi}) {
    rows(*gate, part.c.HV);
  }
  return part;
}

/// State n of [N, HV, V, K].
std::vector<double> state(const MomentumDeltaRuleData& data, const std::vector<double>& x,
                          int64_t n) {
  const int64_t size = data.c.HV * data.c.V * data.c.K;
  return {x.begin() + n * size, x.begin() + (n + 1) * size};
}

TEST(MomentumDeltaRule, PackedSequencesEqualEachOfThemAlone) {
  for (const MomentumDeltaRuleCase& c : correctness_cases()) {
    if (c.lengths.empty()) {
      continue;
    }
    SCOPED_TRACE(c.name);
    const MomentumDeltaRuleData data(c, DType::kFloat32);
    const Results packed = run_cpu(data, DType::kFloat32);
    for (int64_t n = 0; n < data.N; ++n) {
      SCOPED_TRACE(n);
      const int64_t begin = data.cu_seqlens[n];
      const int64_t end = data.cu_seqlens[n + 1];
      if (begin == end) {  // the states pass through, as do their gradients
        EXPECT_TRUE(state(data, at(packed, "final_S"), n) == state(data, data.S, n));
        EXPECT_TRUE(state(data, at(packed, "d_S"), n) == state(data, data.d_S, n));
        if (c.momentum) {
          EXPECT_TRUE(state(data, at(packed, "final_M"), n) == state(data, data.M, n));
          EXPECT_TRUE(state(data, at(packed, "d_M"), n) == state(data, data.d_M, n));
        }
        continue;
      }
      MomentumDeltaRuleData alone = cut(data, begin, end);
      alone.S = state(data, data.S, n);
      alone.d_S = state(data, data.d_S, n);
      if (c.momentum) {
        alone.M = state(data, data.M, n);
        alone.d_M = state(data, data.d_M, n);
      }
      for (const Values& values : run_cpu(alone, DType::kFloat32)) {
        const std::vector<double>& whole = at(packed, values.name);
        const bool of_states = values.x.size() == alone.S.size() && whole.size() == data.S.size() &&
                               values.name.ends_with('S') | values.name.ends_with('M');
        if (of_states) {
          EXPECT_TRUE(values.x == state(data, whole, n)) << values.name;
          continue;
        }
        const int64_t columns = static_cast<int64_t>(values.x.size()) / (end - begin);
        EXPECT_TRUE(std::equal(values.x.begin(), values.x.end(), whole.begin() + begin * columns))
            << values.name;
      }
    }
  }
}

TEST(MomentumDeltaRule, SplitAtAnyTokenEqualsWhole) {
  const MomentumDeltaRuleCase c{.name = "split",
                                .T = 150,
                                .H = 1,
                                .HV = 2,
                                .K = 16,
                                .V = 32,
                                .pi = Prediction::kRandom,
                                .l2norm = true};
  const MomentumDeltaRuleData data(c, DType::kFloat32);
  const Results reference = run_reference(data);
  const auto allowed = tolerances(data, DType::kFloat32, reference, {64});
  for (int64_t at_token : {1, 16, 63, 64, 65, 100, 149}) {
    SCOPED_TRACE(at_token);
    // Forward with carried states, backward with carried gradients of the states.
    MomentumDeltaRuleData head = cut(data, 0, at_token);
    MomentumDeltaRuleData tail = cut(data, at_token, c.T);
    head.d_S.assign(head.S.size(), 0);
    head.d_M.assign(head.S.size(), 0);
    Results first = run_cpu(head, DType::kFloat32);
    tail.S = at(first, "final_S");
    tail.M = at(first, "final_M");
    const Results second = run_cpu(tail, DType::kFloat32);
    head.d_S = at(second, "d_S");
    head.d_M = at(second, "d_M");
    first = run_cpu(head, DType::kFloat32);

    Results joined;
    for (const Values& values : first) {
      std::vector<double> x = values.x;
      const std::vector<double>& rest = at(second, values.name);
      if (values.name == "final_S" || values.name == "final_M") {
        x = rest;
      } else if (values.name != "d_S" && values.name != "d_M") {
        x.insert(x.end(), rest.begin(), rest.end());
      }
      joined.push_back({values.name, x});
    }
    EXPECT_EQ(compare(joined, reference, allowed), "");
  }
}

/// The tensors of a step and the call that uses them.
template <class T>
struct StepMemory {
  std::vector<T> q, k, v, o;
  std::vector<float> alpha, mu, eta, beta, pi, S, M;
  MomentumDeltaRuleStep call;
};

template <class T>
std::vector<T> typed(const std::vector<double>& x) {
  std::vector<T> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = static_cast<T>(static_cast<float>(x[i]));
  }
  return y;
}

/// Steps of a batch through all of its tokens; returns o, final_S and final_M.
template <class T>
Results run_steps(const MomentumDeltaRuleData& data, DType dtype) {
  const MomentumDeltaRuleCase& c = data.c;
  StepMemory<T> m;
  m.S = typed<float>(data.S);
  m.M = typed<float>(data.M);
  std::vector<double> o(data.v.size());
  for (int64_t t = 0; t < c.T; ++t) {
    const auto token = [&](const std::vector<double>& x, int64_t columns) {
      std::vector<double> rows;
      for (int64_t b = 0; b < (x.empty() ? 0 : c.B); ++b) {
        const auto row = x.begin() + (b * c.T + t) * columns;
        rows.insert(rows.end(), row, row + columns);
      }
      return rows;
    };
    m.q = typed<T>(token(data.q, c.H * c.K));
    m.k = typed<T>(token(data.k, c.H * c.K));
    m.v = typed<T>(token(data.v, c.HV * c.V));
    m.alpha = typed<float>(token(data.alpha, c.HV));
    m.mu = typed<float>(token(data.mu, c.HV));
    m.eta = typed<float>(token(data.eta, c.HV));
    m.beta = typed<float>(token(data.beta, c.HV));
    m.pi = typed<float>(token(data.pi, c.HV));
    m.o.assign(m.v.size(), T(std::nanf("")));
    MomentumDeltaRuleStep call;
    call.B = c.B;
    call.H = c.H;
    call.HV = c.HV;
    call.K = c.K;
    call.V = c.V;
    call.dtype = dtype;
    call.scale = data.scale;
    call.l2norm = c.l2norm;
    call.q = m.q.data();
    call.k = m.k.data();
    call.v = m.v.data();
    call.alpha = m.alpha.data();
    call.mu = c.momentum ? m.mu.data() : nullptr;
    call.eta = m.eta.data();
    call.beta = m.beta.data();
    call.pi = m.pi.empty() ? nullptr : m.pi.data();
    call.S = m.S.data();
    call.M = c.momentum ? m.M.data() : nullptr;
    call.o = m.o.data();
    kernels::cpu::step(call);
    for (int64_t b = 0; b < c.B; ++b) {
      for (int64_t i = 0; i < c.HV * c.V; ++i) {
        o[(b * c.T + t) * c.HV * c.V + i] = static_cast<float>(m.o[b * c.HV * c.V + i]);
      }
    }
  }
  Results results = {{"o", o}, {"final_S", {m.S.begin(), m.S.end()}}};
  if (c.momentum) {
    results.push_back({"final_M", {m.M.begin(), m.M.end()}});
  }
  return results;
}

TEST(MomentumDeltaRule, StepsEqualForward) {
  for (const MomentumDeltaRuleCase& c : correctness_cases()) {
    if (!c.lengths.empty() || !c.states || c.T > 200) {
      continue;
    }
    SCOPED_TRACE(c.name);
    for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const MomentumDeltaRuleData data(c, dtype);
      Results reference = run_reference(data);
      std::erase_if(reference, [](const Values& values) { return is_gradient(values.name); });
      const auto allowed = tolerances(data, dtype, reference, {1});
      const Results results = dtype == DType::kFloat32 ? run_steps<float>(data, dtype)
                                                       : run_steps<BFloat16>(data, dtype);
      EXPECT_EQ(compare(results, reference, allowed), "") << name_of(dtype);
    }
  }
}

/// A step of float64 for the reference, float32 for the CPU, from the same numbers.
template <class T>
class SlotStep {
 public:
  SlotStep(int64_t B, int64_t slots_count, const std::vector<int64_t>& slots) {
    const int64_t H = 2, HV = 4, K = 40, V = 24;
    const auto fill = [](std::vector<T>& x, int64_t count, double base) {
      for (int64_t i = 0; i < count; ++i) {
        x.push_back(static_cast<T>(static_cast<float>(
            base * (0.5 + 0.5 * std::sin(static_cast<double>(i) * 0.7 + base)))));
      }
    };
    fill(q, B * H * K, 0.9);
    fill(k, B * H * K, 0.8);
    fill(v, B * HV * V, 2);
    fill(alpha, B * HV, 0.95);
    fill(mu, B * HV, 0.85);
    fill(eta, B * HV, 1.2);
    fill(beta, B * HV, 0.7);
    fill(pi, B * HV, 0.99);
    fill(S, slots_count * HV * V * K, 0.3);
    fill(M, slots_count * HV * V * K, 0.2);
    o.assign(v.size(), T(-7));
    slots_ = slots;
    call.B = B;
    call.H = H;
    call.HV = HV;
    call.K = K;
    call.V = V;
    call.dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    call.l2norm = true;
    call.q = q.data();
    call.k = k.data();
    call.v = v.data();
    call.alpha = alpha.data();
    call.mu = mu.data();
    call.eta = eta.data();
    call.beta = beta.data();
    call.pi = pi.data();
    call.S = S.data();
    call.M = M.data();
    call.o = o.data();
    call.slots = slots_.data();
  }
  std::vector<T> q, k, v, alpha, mu, eta, beta, pi, S, M, o;
  MomentumDeltaRuleStep call;

 private:
  std::vector<int64_t> slots_;
};

TEST(MomentumDeltaRule, StepUsesSlots) {
  const std::vector<int64_t> slots = {3, -1, 0, 5, -9};
  SlotStep<double> reference(5, 7, slots);
  SlotStep<float> cpu(5, 7, slots);
  const SlotStep<float> before(5, 7, slots);
  kernels::reference::step(reference.call);
  kernels::cpu::step(cpu.call);
  const int64_t state = 4 * 24 * 40;
  for (int64_t slot = 0; slot < 7; ++slot) {
    const bool used = slot == 3 || slot == 0 || slot == 5;
    for (int64_t i = slot * state; i < (slot + 1) * state; ++i) {
      if (used) {
        EXPECT_NEAR(cpu.S[i], reference.S[i], 1e-5);
        EXPECT_NEAR(cpu.M[i], reference.M[i], 1e-5);
        EXPECT_NE(cpu.M[i], before.M[i]);
      } else {
        EXPECT_EQ(cpu.S[i], before.S[i]);
        EXPECT_EQ(cpu.M[i], before.M[i]);
      }
    }
  }
  for (int64_t b = 0; b < 5; ++b) {
    for (int64_t i = b * 96; i < (b + 1) * 96; ++i) {
      if (slots[b] < 0) {
        EXPECT_EQ(cpu.o[i], -7);
      } else {
        EXPECT_NEAR(cpu.o[i], reference.o[i], 1e-5);
      }
    }
  }
}

TEST(MomentumDeltaRule, StepReachesSlotsPastTwoToTheThirtyFirstElement) {
  // A pool whose used slot lies past 2^32 elements; the pages in between are never touched.
  const int64_t state = 4 * 24 * 40;
  const int64_t slot = (int64_t{1} << 32) / state + 1;
  const size_t bytes = static_cast<size_t>((slot + 1) * state) * sizeof(float);
  void* pools[2];
  for (void*& pool : pools) {
    pool = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0);
    if (pool == MAP_FAILED) {
      GTEST_SKIP() << "no " << bytes << " bytes of address space";
    }
  }
  SlotStep<float> near(1, 1, {0});
  SlotStep<float> far(1, 1, {slot});
  std::memcpy(static_cast<float*>(pools[0]) + slot * state, far.S.data(), state * sizeof(float));
  std::memcpy(static_cast<float*>(pools[1]) + slot * state, far.M.data(), state * sizeof(float));
  far.call.S = pools[0];
  far.call.M = pools[1];
  kernels::cpu::step(near.call);
  kernels::cpu::step(far.call);
  EXPECT_EQ(near.o, far.o);
  EXPECT_EQ(std::memcmp(near.S.data(), static_cast<float*>(pools[0]) + slot * state,
                        state * sizeof(float)),
            0);
  EXPECT_EQ(std::memcmp(near.M.data(), static_cast<float*>(pools[1]) + slot * state,
                        state * sizeof(float)),
            0);
  munmap(pools[0], bytes);
  munmap(pools[1], bytes);
}

TEST(MomentumDeltaRule, SizesOfLargeProblems) {
  MomentumDeltaRuleProblem p;
  p.T = int64_t{1} << 24;  // q has 2^37 elements
  p.H = 32;
  p.HV = 64;
  p.K = 256;
  p.V = 512;
  const auto sizes = kernels::cpu::sizes(p);
  // States every 512 tokens: T / 512 · HV · 2 K V floats.
  EXPECT_EQ(sizes.saved, (size_t{1} << 24) / 512 * 64 * 2 * 256 * 512 * 4);
  // The gradients of each value head's q and k, and the threads' scratch.
  EXPECT_GT(sizes.backward_workspace, (size_t{1} << 24) * 64 * 256 * 2 * 4);
  // A thread's scratch does not grow with the number of tokens.
  MomentumDeltaRuleProblem shorter = p;
  shorter.T = 1024;
  EXPECT_EQ(kernels::cpu::sizes(shorter).forward_workspace, sizes.forward_workspace);
}

TEST(MomentumDeltaRule, EveryInstructionSetAgrees) {
  const MomentumDeltaRuleCase c{.name = "targets",
                                .T = 150,
                                .H = 1,
                                .HV = 2,
                                .K = 24,
                                .V = 40,
                                .gates = Gates::kSomeZeros,
                                .pi = Prediction::kRandom,
                                .l2norm = true};
  for (DType dtype : {DType::kFloat32, DType::kBFloat16}) {
    const MomentumDeltaRuleData data(c, dtype);
    const Results reference = run_reference(data);
    const auto allowed = tolerances(data, dtype, reference, {64});
    int tried = 0;
    for (int64_t targets = hwy::SupportedTargets(); targets != 0; targets &= targets - 1) {
      const int64_t target = targets & -targets;
      SCOPED_TRACE(hwy::TargetName(target));
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      EXPECT_EQ(compare(run_cpu(data, dtype), reference, allowed), "");
      ++tried;
    }
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    EXPECT_GE(tried, 1);
  }
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

/// Calls that are right in everything; each test spoils one thing.
struct GoodCalls {
  std::vector<float> memory = std::vector<float>(1 << 20);
  MomentumDeltaRuleForward forward;
  MomentumDeltaRuleBackward backward;
  MomentumDeltaRuleStep step;
  GoodCalls() {
    void* any = memory.data();
    MomentumDeltaRuleProblem p;
    p.T = 4;
    p.H = 1;
    p.HV = 2;
    p.K = 4;
    p.V = 4;
    forward.problem = p;
    forward.inputs = {any, any, any, any, any, any, any, nullptr, nullptr, nullptr};
    forward.o = any;
    forward.workspace = any;
    backward.problem = p;
    backward.inputs = forward.inputs;
    backward.d_o = any;
    backward.d_q = backward.d_k = backward.d_v = any;
    backward.d_alpha = backward.d_mu = backward.d_eta = backward.d_beta = any;
    backward.workspace = any;
    step.HV = 2;
    step.K = step.V = 4;
    step.q = step.k = step.v = step.alpha = step.mu = step.eta = step.beta = any;
    step.S = step.M = step.o = any;
  }
};

struct BadCall {
  const char* name;
  std::function<void(GoodCalls&)> spoil;
  const char* message;  // a part of it
};

TEST(MomentumDeltaRule, BadCallsAreRejected) {
  static const int64_t decreasing[] = {0, 3, 2, 4};
  static const int64_t late_start[] = {1, 2, 3, 4};
  static const int64_t short_end[] = {0, 1, 2, 3};
  const auto packed = [](GoodCalls& calls, const int64_t* cu_seqlens) {
    calls.forward.problem.N = 3;
    calls.forward.problem.cu_seqlens = cu_seqlens;
  };
  const BadCall forward_calls[] = {
      {"T", [](auto& c) { c.forward.problem.T = 0; }, "T is 0; it must be at least 1"},
      {"K", [](auto& c) { c.forward.problem.K = -3; }, "K is -3"},
      {"heads", [](auto& c) { c.forward.problem.H = 3; }, "2 value heads over 3 query/key heads"},
      {"N", [](auto& c) { c.forward.problem.N = 5; }, "N is 5 and B is 1"},
      {"scale", [](auto& c) { c.forward.problem.scale = INFINITY; }, "scale is inf"},
      {"size", [](auto& c) { c.forward.problem.T = int64_t{1} << 60; }, "passes 2^63 bytes"},
      {"k", [](auto& c) { c.forward.inputs.k = nullptr; }, "k is missing"},
      {"beta", [](auto& c) { c.forward.inputs.beta = nullptr; }, "beta is missing"},
      {"o", [](auto& c) { c.forward.o = nullptr; }, "o is missing"},
      {"workspace", [](auto& c) { c.forward.workspace = nullptr; }, "workspace is missing"},
      {"half", [](auto& c) { c.forward.problem.dtype = DType::kFloat16; }, "no float16"},
      {"order", [&](auto& c) { packed(c, decreasing); }, "cu_seqlens[1] = 3 is above"},
      {"start", [&](auto& c) { packed(c, late_start); }, "cu_seqlens[0] is 1"},
      {"end", [&](auto& c) { packed(c, short_end); }, "cu_seqlens[3] = 3 but there are 4 tokens"},
      {"packed batch",
       [&](auto& c) {
         packed(c, short_end);
         c.forward.problem.B = 2;
       },
       "packed sequences with B = 2"},
  };
  for (const BadCall& bad : forward_calls) {
    GoodCalls calls;
    bad.spoil(calls);
    EXPECT_NE(message_of([&] { kernels::cpu::forward(calls.forward); }).find(bad.message),
              std::string::npos)
        << bad.name;
  }
  const BadCall backward_calls[] = {
      {"d_o", [](auto& c) { c.backward.d_o = nullptr; }, "d_o is missing"},
      {"d_v", [](auto& c) { c.backward.d_v = nullptr; }, "d_v is missing"},
      {"d_pi", [](auto& c) { c.backward.d_pi = c.memory.data(); }, "d_pi is given while pi is"},
      {"pi", [](auto& c) { c.backward.inputs.pi = c.memory.data(); }, "d_pi is missing while pi"},
      {"saved", [](auto& c) { c.backward.problem.T = 4096; }, "saved is missing"},
  };
  for (const BadCall& bad : backward_calls) {
    GoodCalls calls;
    bad.spoil(calls);
    EXPECT_NE(message_of([&] { kernels::cpu::backward(calls.backward); }).find(bad.message),
              std::string::npos)
        << bad.name;
  }
  static const int64_t twice[] = {4, -1, -1, 4};
  const BadCall step_calls[] = {
      {"B", [](auto& c) { c.step.B = 0; }, "B is 0"},
      {"S", [](auto& c) { c.step.S = nullptr; }, "S is missing"},
      {"dtype", [](auto& c) { c.step.dtype = DType::kFloat64; }, "no float64"},
      {"half", [](auto& c) { c.step.dtype = DType::kFloat16; }, "no float16"},
      {"half states", [](auto& c) { c.step.state_dtype = DType::kFloat16; }, "float16 states"},
      {"wide states", [](auto& c) { c.step.state_dtype = DType::kFloat64; }, "states of float64"},
      {"slots",
       [&](auto& c) {
         c.step.B = 4;
         c.step.slots = twice;
       },
       "slot 4 is given to two sequences of one step (the second is sequence 3)"},
  };
  for (const BadCall& bad : step_calls) {
    GoodCalls calls;
    bad.spoil(calls);
    EXPECT_NE(message_of([&] { kernels::cpu::step(calls.step); }).find(bad.message),
              std::string::npos)
        << bad.name;
  }
  GoodCalls calls;
  EXPECT_NE(message_of([&] { kernels::reference::forward(calls.forward); }).find("no float32"),
            std::string::npos);
  EXPECT_EQ(message_of([&] { kernels::cpu::forward(calls.forward); }), "no error");
  EXPECT_EQ(message_of([&] { kernels::cpu::backward(calls.backward); }), "no error");
  EXPECT_EQ(message_of([&] { kernels::cpu::step(calls.step); }), "no error");
}

}  // namespace
}  // namespace mdn::test
