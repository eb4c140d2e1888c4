#include "tests/support/kimi_delta_rule_cases.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace mdn::test {
namespace {

using kernels::KimiDeltaRuleProblem;

constexpr double kSmallestHalf = 0x1p-24;  // above 0

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * M_PI * uniform());
  }

 private:
  std::mt19937_64 engine_;
};

double log_decay(Decay decay, Random& random) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kMix[] = {0, -1e-3, -20, -200, -kInfinity};
  switch (decay) {
    case Decay::kMild:
      return -0.1 * random.uniform();
    case Decay::kLayer:
      return -5 * random.uniform();
    case Decay::kNone:
      return 0;
    case Decay::kMinus20:
      return -20;
    case Decay::kMinus200:
      return -200;
    case Decay::kAll:
      return -kInfinity;
    case Decay::kMixed:
      return kMix[static_cast<int>(5 * random.uniform())];
  }
  return 0;
}

std::vector<double> rounded(const std::vector<double>& x, DType dtype) {
  return decode(encode(x, dtype).data(), x.size(), dtype);
}

}  // namespace

const std::vector<KimiDeltaRuleCase>& kimi_delta_rule_cases() {
  static const std::vector<int64_t> lengths = {0, 1, 1, 64, 129, 130, 130, 200};
  static const std::vector<KimiDeltaRuleCase> cases = {
      {.name = "one_token"},
      {.name = "chunk_less_one", .B = 2, .T = 63, .H = 2, .HV = 2, .K = 32, .V = 24},
      {.name = "chunk", .B = 2, .T = 64, .H = 2, .HV = 2},
      {.name = "chunk_and_one", .B = 2, .T = 65, .H = 2, .HV = 2, .K = 24, .V = 40},
      {.name = "two_chunks_and_two", .B = 2, .T = 130, .H = 2, .HV = 2, .decay = Decay::kMild},
      {.name = "odd_sizes", .T = 70, .K = 5, .V = 3},
      {.name = "fresh_start", .T = 70, .states = false},
      {.name = "grouped", .B = 2, .T = 66, .H = 2, .HV = 6},
      {.name = "normalised", .B = 2, .T = 66, .H = 2, .HV = 4, .l2norm = true},
      {.name = "packed", .T = 200, .H = 2, .HV = 4, .bounds = lengths, .l2norm = true},
      {.name = "packed_fresh", .T = 200, .bounds = lengths, .states = false},
      {.name = "no_decay", .T = 130, .decay = Decay::kNone},
      {.name = "minus_20", .T = 130, .decay = Decay::kMinus20},
      {.name = "minus_200", .T = 130, .decay = Decay::kMinus200},
      {.name = "all_decay", .T = 130, .decay = Decay::kAll},
      {.name = "mixed_decay", .B = 2, .T = 130, .H = 2, .HV = 2, .decay = Decay::kMixed},
      {.name = "negative_eigenvalues", .T = 130, .decay = Decay::kMild, .beta = 2},
      {.name = "correlated_keys", .T = 130, .K = 32, .decay = Decay::kMild, .key_cosine = 0.9},
      // More than a piece of the chunkwise program: cut by steps, and by heads.
      {.name = "long", .B = 2, .T = 400, .H = 3, .HV = 3, .K = 128, .V = 8},
      {.name = "many_heads", .B = 2, .T = 70, .H = 18, .HV = 18, .K = 128, .V = 4},
  };
  return cases;
}

KimiDeltaRuleData::KimiDeltaRuleData(const KimiDeltaRuleCase& given, DType dtype, uint64_t seed)
    : c(given), scale(1 / std::sqrt(static_cast<double>(given.K))) {
  Random random(seed);
  const DType gate = dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const auto normal = [&](int64_t count, double deviation) {
    std::vector<double> x(static_cast<size_t>(count));
    for (double& value : x) {
      value = deviation * random.normal();
    }
    return x;
  };
  // Unit rows whose keys have mean cosine c; of length 3 sqrt(K) or so where they are normalised
  // inside.
  const auto rows = [&](double cosine) {
    const std::vector<double> common = normal(c.H * c.K, 1);
    std::vector<double> x = normal(c.B * c.T * c.H * c.K, 1);
    for (int64_t row = 0; row < c.B * c.T * c.H; ++row) {
      double squares = 0;
      for (int64_t i = 0; i < c.K; ++i) {
        double& value = x[row * c.K + i];
        value = std::sqrt(1 - cosine) * value + std::sqrt(cosine) * common[row % c.H * c.K + i];
        squares += value * value;
      }
      const double factor = c.l2norm ? 3 : 1 / std::max(std::sqrt(squares), 1e-3);
      for (int64_t i = 0; i < c.K; ++i) {
        x[row * c.K + i] *= factor;
      }
    }
    return rounded(x, dtype);
  };
  const int64_t states = c.sequences() * c.HV * c.V * c.K;
  q = rows(0);
  k = rows(c.key_cosine);
  v = rounded(normal(c.B * c.T * c.HV * c.V, 1), dtype);
  for (int64_t i = 0; i < c.B * c.T * c.HV * c.K; ++i) {
    alpha.push_back(std::exp(log_decay(c.decay, random)));
  }
  alpha = rounded(alpha, gate);
  for (int64_t i = 0; i < c.B * c.T * c.HV; ++i) {
    beta.push_back(c.beta * random.uniform());
  }
  beta = rounded(beta, gate);
  if (c.states) {
    S = rounded(normal(states, 0.25), gate);
  }
  d_o = rounded(normal(c.B * c.T * c.HV * c.V, 1), dtype);
  d_S = rounded(normal(states, 0.25), gate);
}

KimiDeltaRuleProblem KimiDeltaRuleData::problem(DType dtype) const {
  KimiDeltaRuleProblem p;
  p.B = c.B;
  p.T = c.T;
  p.H = c.H;
  p.HV = c.HV;
  p.K = c.K;
  p.V = c.V;
  p.N = c.sequences();
  p.cu_seqlens = c.bounds.empty() ? nullptr : c.bounds.data();
  p.dtype = dtype;
  p.scale = scale;
  p.l2norm = c.l2norm;
  return p;
}

Results run_kimi_reference(const KimiDeltaRuleData& data) {
  const KimiDeltaRuleProblem p = data.problem(DType::kFloat64);
  const kernels::KimiDeltaRuleSizes sizes = kernels::reference::sizes(p);
  std::vector<unsigned char> workspace(std::max(sizes.forward_workspace, sizes.backward_workspace));
  const auto given = [](const std::vector<double>& x) { return x.empty() ? nullptr : x.data(); };
  const kernels::KimiDeltaRuleInputs inputs{.q = given(data.q),
                                            .k = given(data.k),
                                            .v = given(data.v),
                                            .alpha = given(data.alpha),
                                            .beta = given(data.beta),
                                            .initial_S = given(data.S)};
  Results r = {{"o", data.v},   {"final_S", data.d_S},   {"d_q", data.q},      {"d_k", data.k},
               {"d_v", data.v}, {"d_alpha", data.alpha}, {"d_beta", data.beta}};
  if (!data.S.empty()) {
    r.push_back({"d_initial_S", data.S});
  }
  kernels::reference::forward({.problem = p,
                               .inputs = inputs,
                               .o = r[0].x.data(),
                               .final_S = r[1].x.data(),
                               .workspace = workspace.data()});
  kernels::reference::backward({.problem = p,
                                .inputs = inputs,
                                .d_o = data.d_o.data(),
                                .d_final_S = data.d_S.data(),
                                .d_q = r[2].x.data(),
                                .d_k = r[3].x.data(),
                                .d_v = r[4].x.data(),
                                .d_alpha = r[5].x.data(),
                                .d_beta = r[6].x.data(),
                                .d_initial_S = data.S.empty() ? nullptr : r[7].x.data(),
                                .workspace = workspace.data()});
  return r;
}

std::vector<std::pair<std::string, double>> kimi_tolerances(const KimiDeltaRuleData& data,
                                                            DType dtype, const Results& reference) {
  // Small results need several draws until their mean square is known.
  const auto draws = static_cast<int>(std::clamp<size_t>(4096 / data.v.size(), 1, 16));
  std::vector<double> squares(reference.size());
  Random random(99);
  for (int draw = 0; draw < draws; ++draw) {
    KimiDeltaRuleData shaken = data;
    for (auto* tensor : {&shaken.q, &shaken.k, &shaken.v, &shaken.S, &shaken.d_o, &shaken.d_S}) {
      for (double& value : *tensor) {
        value *= 1 + (random.uniform() < 0.5 ? 1 : -1) * unit_roundoff(dtype);
      }
    }
    const Results answer = run_kimi_reference(shaken);
    for (size_t i = 0; i < reference.size(); ++i) {
      const double error = relative_error(answer[i].x, reference[i].x);
      squares[i] += error * error / draws;
    }
  }
  std::vector<std::pair<std::string, double>> result;
  for (size_t i = 0; i < reference.size(); ++i) {
    const std::string& name = reference[i].name;
    const bool of_rows = name == "o" || name == "d_q" || name == "d_k" || name == "d_v";
    double allowed = unit_roundoff(of_rows ? dtype : DType::kFloat32) + 2 * std::sqrt(squares[i]);
    if (dtype == DType::kFloat16) {
      double norm = 0;
      for (double value : reference[i].x) {
        norm += value * value;
      }
      allowed += norm > 0 ? kSmallestHalf * std::sqrt(double(reference[i].x.size()) / norm) : 0;
    }
    result.emplace_back(name, allowed);
  }
  return result;
}

}  // namespace mdn::test
