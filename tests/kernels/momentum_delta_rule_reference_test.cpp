// The reference backend against numbers that it had no part in: golden files of the published
// recurrence, numerical derivatives, and a token worked out by hand.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "mdn/core/error.h"
#include "mdn/io/safetensors.h"
#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {
namespace {

std::vector<double> read(const SafetensorsFile& file, const std::string& name) {
  const TensorView& tensor = file.at(name);
  MDN_CHECK(tensor.dtype == FileDType::kF32, "{} is {}", name, name_of(tensor.dtype));
  std::vector<float> floats(tensor.data.size() / sizeof(float));
  std::memcpy(floats.data(), tensor.data.data(), tensor.data.size());
  return {floats.begin(), floats.end()};
}

/// The first `count` of the numbers.
std::vector<double> first(std::vector<double> x, size_t count) {
  x.resize(count);
  return x;
}

/// [N, K, V] to [N, V, K].
std::vector<double> transposed(const std::vector<double>& x, int64_t K, int64_t V) {
  std::vector<double> y(x.size());
  const int64_t N = static_cast<int64_t>(x.size()) / (K * V);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t v = 0; v < V; ++v) {
        y[(n * V + v) * K + i] = x[(n * K + i) * V + v];
      }
    }
  }
  return y;
}

struct Golden {
  MomentumDeltaRuleData data;
  Results results;
};

/// The golden states are [B, H, K, V]; gate gradients are of log alpha and log mu.
Golden read_golden(const std::string& name) {
  const std::string folder = std::string(MDN_TEST_DATA) + "/goldens/ops/";
  const SafetensorsFile inputs(folder + "inputs.safetensors");
  const SafetensorsFile file(folder + name + ".safetensors");
  Golden golden;
  MomentumDeltaRuleData& d = golden.data;
  const std::vector<int64_t>& shape = file.at("o").shape;
  d.c.name = name;
  d.c.B = d.N = shape[0];
  d.c.T = shape[1];
  d.c.H = d.c.HV = shape[2];
  d.c.V = shape[3];
  d.c.K = inputs.at("q").shape[3];
  d.scale = 1 / std::sqrt(static_cast<double>(d.c.K));
  const size_t tokens = static_cast<size_t>(d.c.B * d.c.T * d.c.H);
  const size_t states = static_cast<size_t>(d.c.B * d.c.H * d.c.K * d.c.V);
  const auto input_rows = [&](const char* key, int64_t columns) {
    return first(read(inputs, key), tokens * columns);
  };
  const auto state = [&](const SafetensorsFile& from, const char* key) {
    return transposed(first(read(from, key), states), d.c.K, d.c.V);
  };
  d.q = input_rows("q", d.c.K);
  d.k = input_rows("k", d.c.K);
  d.v = input_rows("v", d.c.V);
  d.d_o = input_rows("do", d.c.V);
  d.S = state(inputs, "s0");
  d.M = state(inputs, "m0");
  d.d_S = state(inputs, "dst");
  d.d_M = state(inputs, "dmt");
  for (double x : read(file, "log_alpha")) {
    d.alpha.push_back(std::exp(x));
  }
  for (double x : read(file, "log_mu")) {
    d.mu.push_back(std::exp(x));
  }
  d.eta = read(file, "eta");
  d.beta = read(file, "beta");

  golden.results = {{"o", read(file, "o")},
                    {"final_S", state(file, "st")},
                    {"final_M", state(file, "mt")},
                    {"d_q", read(file, "grad.q")},
                    {"d_k", read(file, "grad.k")},
                    {"d_v", read(file, "grad.v")},
                    {"d_alpha", read(file, "grad.log_alpha")},
                    {"d_mu", read(file, "grad.log_mu")},
                    {"d_eta", read(file, "grad.eta")},
                    {"d_beta", read(file, "grad.beta")},
                    {"d_S", state(file, "grad.s0")},
                    {"d_M", state(file, "grad.m0")}};
  return golden;
}

/// d log x = x dx
void to_log_gradients(const MomentumDeltaRuleData& data, Results& results) {
  for (Values& values : results) {
    if (values.name == "d_alpha" || values.name == "d_mu") {
      const std::vector<double>& gate = values.name == "d_alpha" ? data.alpha : data.mu;
      for (size_t i = 0; i < gate.size(); ++i) {
        values.x[i] *= gate[i];
      }
    }
  }
}

class Goldens : public testing::TestWithParam<const char*> {};

TEST_P(Goldens, ReferenceAgrees) {
  const Golden golden = read_golden(GetParam());
  Results results = run_reference(golden.data);
  to_log_gradients(golden.data, results);
  for (const Values& values : golden.results) {
    // The files hold float32 roundings (6e-8) of float64 results.
    EXPECT_LT(relative_error(at(results, values.name), values.x), 2 * 0x1p-24) << values.name;
  }
}

TEST_P(Goldens, CpuAgrees) {
  const Golden golden = read_golden(GetParam());
  // float32 gates are roundings of exp(log gate): the reference says what that may change.
  const Results reference = run_reference(golden.data);
  const auto allowed = tolerances(golden.data, DType::kFloat32, reference, {64});
  Results results = run_cpu(golden.data, DType::kFloat32);
  EXPECT_EQ(compare(results, reference, allowed), "");
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, Goldens,
                         testing::Values("momentum_mild", "momentum_strong", "momentum_floor"));

/// L = <o, d_o> + <S, d_S> + <M, d_M>, whose gradient the backward pass computes.
double loss(const MomentumDeltaRuleData& data, const Results& results) {
  double sum = 0;
  const auto add = [&](const std::vector<double>& x, const std::vector<double>& d_x) {
    for (size_t i = 0; i < d_x.size(); ++i) {
      sum += x[i] * d_x[i];
    }
  };
  add(at(results, "o"), data.d_o);
  add(at(results, "final_S"), data.d_S);
  add(at(results, "final_M"), data.d_M);
  return sum;
}

class Derivatives : public testing::TestWithParam<MomentumDeltaRuleCase> {};

TEST_P(Derivatives, ReferenceAgrees) {
  MomentumDeltaRuleData data(GetParam(), DType::kFloat64);
  const Results results = run_reference(data);
  for (auto& [name, tensor] : data.tensors()) {
    const std::vector<double> x = *tensor;
    const std::vector<double>& gradient = at(results, "d_" + name);
    std::vector<double> direction(x.size());
    double along = 0;
    double length = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      direction[i] = std::sin(1.7 * static_cast<double>(i) + 0.3);
      along += direction[i] * gradient[i];
      length += gradient[i] * gradient[i] * direction[i] * direction[i];
    }
    // Central differences at h and 2h, combined so that the error is of order h⁴.
    const double h = 1e-4;
    const auto at_distance = [&](double distance) {
      for (size_t i = 0; i < x.size(); ++i) {
        (*tensor)[i] = x[i] + distance * direction[i];
      }
      return loss(data, run_reference(data));
    };
    const double near = (at_distance(h) - at_distance(-h)) / (2 * h);
    const double far = (at_distance(2 * h) - at_distance(-2 * h)) / (4 * h);
    *tensor = x;
    // h⁴ = 1e-16 and the cancellation 1e-16 / h = 1e-12 meet a loss that is some hundred times
    // the gradient along the direction.
    EXPECT_NEAR((4 * near - far) / 3, along, 1e-8 * std::sqrt(length)) << name;
  }
}

std::vector<MomentumDeltaRuleCase> derivative_cases() {
  std::vector<MomentumDeltaRuleCase> cases = {
      {.name = "tied", .B = 2, .T = 7, .H = 2, .HV = 2, .K = 5, .V = 6},
      {.name = "pi", .T = 9, .K = 4, .V = 7, .pi = Prediction::kRandom},
      {.name = "shared_l2norm", .T = 8, .H = 1, .HV = 3, .K = 5, .V = 4, .l2norm = true},
      {.name = "packed", .T = 0, .K = 4, .V = 5, .lengths = {1, 0, 6, 2}},
      {.name = "zeros",
       .T = 40,
       .K = 3,
       .V = 2,
       .gates = Gates::kSomeZeros,
       .pi = Prediction::kRandom},
      {.name = "all_zero", .T = 4, .K = 3, .V = 2, .gates = Gates::kAllZero}};
  return cases;
}

std::string case_name(const testing::TestParamInfo<MomentumDeltaRuleCase>& info) {
  return info.param.name;
}

INSTANTIATE_TEST_SUITE_P(MomentumDeltaRule, Derivatives, testing::ValuesIn(derivative_cases()),
                         case_name);

TEST(MomentumDeltaRuleReference, TwoTokensByHand) {
  // K = V = 1, S = 2, M = 3. Token 1: q 1, k 1, v 5, alpha 1/2, mu 1/3, eta 1, beta 1/4.
  //   r = 5 - 1/2·2 = 4;  M = 1 - 4 = -3;  S = 1 + 3/4 = 7/4;  o = 7/4
  // Token 2: q 2, k 2, v 1, alpha 1, mu 1, eta 1/2, beta 1.
  //   r = 1 - 2·7/4 = -5/2;  M = -3 + 5/2 = -1/2;  S = 7/4 + 1/2 = 9/4;  o = 9/2
  MomentumDeltaRuleData data;
  data.c = {.name = "by_hand", .T = 2, .K = 1, .V = 1};
  data.q = {1, 2};
  data.k = {1, 2};
  data.v = {5, 1};
  data.alpha = {0.5, 1};
  data.mu = {1.0 / 3, 1};
  data.eta = {1, 0.5};
  data.beta = {0.25, 1};
  data.S = {2};
  data.M = {3};
  data.d_o = {0, 1};
  const Results results = run_reference(data);
  EXPECT_DOUBLE_EQ(at(results, "o")[0], 1.75);
  EXPECT_DOUBLE_EQ(at(results, "o")[1], 4.5);
  EXPECT_DOUBLE_EQ(at(results, "final_S")[0], 2.25);
  EXPECT_DOUBLE_EQ(at(results, "final_M")[0], -0.5);
  // o_2 = q (alpha S - beta (mu M - eta k (v - pi S k))): by v: q beta eta k = 2
  EXPECT_DOUBLE_EQ(at(results, "d_v")[1], 2.0);
  EXPECT_DOUBLE_EQ(at(results, "d_mu")[1], 6.0);     // -q beta M
  EXPECT_DOUBLE_EQ(at(results, "d_beta")[1], 1.0);   // -q M'
  EXPECT_DOUBLE_EQ(at(results, "d_eta")[1], -10.0);  // q beta k r
}

}  // namespace
}  // namespace mdn::test
