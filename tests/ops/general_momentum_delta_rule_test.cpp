// general_momentum_delta_rule against the recurrence token by token, written with ATen's operations
// in float64 and differentiated by torch.
#include "mdn/ops/general_momentum_delta_rule.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>

#include "mdn/core/error.h"
#include "mdn/ops/momentum_delta_rule.h"

namespace mdn::ops {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

// float64: 2^-53 times sums of a few hundred terms, which the recurrence at hand amplifies by less
// than a thousand.
constexpr double kTolerance = 1e-11;

enum Input : size_t { kQ, kK, kV, kAlpha, kMu, kEta, kBeta, kKappa, kLambda, kPi, kS, kM };

struct Case {
  std::string name = {};
  int64_t B = 2, T = 70, H = 2, HV = 2, K = 6, V = 5;
  std::function<void(Tensors&)> edit = [](Tensors&) {};
};

Tensor uniform(at::IntArrayRef shape) {
  return at::rand(shape, at::kDouble);
}

/// All inputs, q and k normalised, gates in their ranges; kappa and lambda independent of beta mu.
Tensors make_inputs(const Case& c) {
  at::manual_seed(7);
  const std::vector<int64_t> rows = {c.B, c.T}, gates = {c.B, c.T, c.HV};
  const auto unit = [&] {
    const Tensor x = at::randn({c.B, c.T, c.H, c.K}, at::kDouble);
    return x / x.norm(2, {-1}, true);
  };
  const auto state = [&] { return at::randn({c.B, c.HV, c.V, c.K}, at::kDouble); };
  Tensors x = {unit(),
               unit(),
               at::randn({c.B, c.T, c.HV, c.V}, at::kDouble),
               1 - 0.3 * uniform(gates),
               uniform(gates),
               1.2 * uniform(gates),
               0.7 * uniform(gates),
               0.5 * uniform(gates),
               0.3 * uniform(gates),
               1 - 0.3 * uniform(gates),
               state(),
               state()};
  c.edit(x);
  return x;
}

/// The definition: o, S, M.
Tensors token_by_token(const Tensors& x, double scale) {
  const int64_t group = x[kV].size(2) / x[kQ].size(2);
  const auto heads = [&](const Tensor& t) { return t.repeat_interleave(group, 1); };
  Tensor S = x[kS], M = x[kM];
  Tensors o;
  for (int64_t t = 0; t < x[kQ].size(1); ++t) {
    const auto now = [&](Input i) { return x[i].select(1, t); };
    const auto gate = [&](Input i) { return now(i).unsqueeze(-1).unsqueeze(-1); };
    const Tensor k = heads(now(kK)).unsqueeze(2), q = heads(now(kQ)).unsqueeze(2);
    const Tensor seen = gate(kPi) * S - gate(kLambda) * M;
    const Tensor r = now(kV) - (seen * k).sum(-1);
    const Tensor write = gate(kEta) * r.unsqueeze(-1) * k;
    S = gate(kAlpha) * S - gate(kKappa) * M + gate(kBeta) * write;
    M = gate(kMu) * M - write;
    o.push_back(scale * (S * q).sum(-1));
  }
  return {at::stack(o, 1), S, M};
}

Tensors chunkwise(const Tensors& x, double scale, const std::optional<Tensor>& cu = std::nullopt,
                  bool l2norm = false) {
  const auto [o, S, M] =
      general_momentum_delta_rule(x[kQ], x[kK], x[kV], x[kAlpha], x[kMu], x[kEta], x[kBeta],
                                  x[kKappa], x[kLambda], x[kPi], x[kS], x[kM], cu, scale, l2norm);
  return {o, S, M};
}

double relative(const Tensor& got, const Tensor& want) {
  const double norm = want.norm().item<double>();
  const double error = (got.to(at::kDouble) - want).norm().item<double>();
  return norm > 0 ? error / norm : error;
}

/// The loss's gradient in every input, by torch.
Tensors gradients(const Tensors& x, const Tensors& out, const Tensors& d_out) {
  Tensor loss = at::zeros({}, at::kDouble);
  for (size_t i = 0; i < out.size(); ++i) {
    loss = loss + (out[i] * d_out[i]).sum();
  }
  return torch::autograd::grad({loss}, x);
}

class GeneralMomentum : public testing::TestWithParam<Case> {};

TEST_P(GeneralMomentum, OutputsStatesAndGradientsEqualTokenByToken) {
  Tensors x = make_inputs(GetParam());
  for (Tensor& t : x) {
    t.requires_grad_();
  }
  const Tensors want = token_by_token(x, 0.4), got = chunkwise(x, 0.4);
  Tensors d_out;
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_LT(relative(got[i].detach(), want[i].detach()), kTolerance) << "output " << i;
    d_out.push_back(at::randn(want[i].sizes(), at::kDouble));
  }
  const Tensors d_want = gradients(x, want, d_out), d_got = gradients(x, got, d_out);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_LT(relative(d_got[i], d_want[i]), kTolerance) << "gradient of input " << i;
  }
}

TEST_P(GeneralMomentum, StepsEqualTheWhole) {
  const Tensors x = make_inputs(GetParam()), whole = chunkwise(x, 0.4);
  Tensor S = x[kS].clone(), M = x[kM].clone();
  Tensors o;
  for (int64_t t = 0; t < x[kQ].size(1); ++t) {
    const auto now = [&](Input i) { return x[i].select(1, t); };
    o.push_back(general_momentum_delta_rule_step(now(kQ), now(kK), now(kV), now(kAlpha), now(kMu),
                                                 now(kEta), now(kBeta), now(kKappa), now(kLambda),
                                                 S, M, now(kPi), 0.4, false));
  }
  EXPECT_LT(relative(at::stack(o, 1), whole[0]), kTolerance);
  EXPECT_LT(relative(S, whole[1]), kTolerance);
  EXPECT_LT(relative(M, whole[2]), kTolerance);
}

// The rule of docs/numerics.md: u_out + u sqrt(K + V + T) + (2K + C)/3 rho, rho being by how much
// the result changes when every input is off by a relative u of random sign.
TEST_P(GeneralMomentum, Float32IsOffByItsRounding) {
  const Case& c = GetParam();
  constexpr double u = 0x1p-24;
  Tensors x = make_inputs(c), single, disturbed;
  for (Tensor& t : x) {
    single.push_back(t.to(at::kFloat));
    t = single.back().to(at::kDouble);
    disturbed.push_back(t * (1 + u * (2 * at::randint(2, t.sizes(), at::kDouble) - 1)));
  }
  const Tensors want = token_by_token(x, 0.4), moved = token_by_token(disturbed, 0.4);
  const Tensors got = chunkwise(single, 0.4);
  const double C = double(std::min<int64_t>(64, c.T));
  for (size_t i = 0; i < want.size(); ++i) {
    const double rho = relative(moved[i], want[i]);
    const double allowed =
        u + u * std::sqrt(double(c.K + c.V + c.T)) + (2 * double(c.K) + C) / 3 * rho;
    EXPECT_LT(relative(got[i], want[i]), allowed) << "output " << i;
  }
}

void zero(Tensors& x, Input input, int64_t first, int64_t step) {
  x[input].slice(1, first, std::nullopt, step).zero_();
}

const Case kCases[] = {
    {.name = "ordinary"},
    {.name = "one_token", .T = 1},
    {.name = "a_whole_chunk", .T = 64},
    {.name = "a_token_more", .T = 65},
    {.name = "three_chunks", .B = 1, .T = 150},
    {.name = "shared_keys", .H = 2, .HV = 6},
    {.name = "one_channel", .T = 20, .K = 1, .V = 1},
    {.name = "no_momentum",
     .edit =
         [](Tensors& x) {
           x[kMu].zero_();
           x[kKappa].zero_();
           x[kLambda].zero_();
         }},
    {.name = "zeros_here_and_there",
     .edit =
         [](Tensors& x) {
           zero(x, kAlpha, 7, 13);
           zero(x, kMu, 3, 5);
           zero(x, kEta, 2, 11);
           zero(x, kBeta, 4, 9);
           zero(x, kKappa, 1, 6);
           zero(x, kLambda, 2, 6);
           zero(x, kPi, 5, 17);
         }},
    {.name = "everything_forgotten", .edit = [](Tensors& x) { x[kAlpha].zero_(); }},
    {.name = "gates_of_one",
     .T = 40,
     .edit =
         [](Tensors& x) {
           x[kAlpha].fill_(1);
           x[kMu].fill_(1);
           x[kKappa].mul_(0.05);
         }},
};

INSTANTIATE_TEST_SUITE_P(Cases, GeneralMomentum, testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

// The coefficients that docs/math/momentum_variants.md gives each rule, against the rule as
// defined.
Tensors with_rule(const std::string& rule, const Tensor& nu) {
  Tensors x = make_inputs({});
  const Tensor carried = x[kBeta] * x[kMu];
  x[kKappa] = rule == "quasi_hyperbolic" ? carried * nu : carried;
  x[kLambda] = rule == "nesterov" ? carried : at::zeros_like(carried);
  x[kPi] = x[kAlpha];
  return x;
}

TEST(GeneralMomentumRules, HeavyBallIsTheMomentumDeltaRule) {
  const Tensors x = with_rule("heavy_ball", {}), got = chunkwise(x, 0.4);
  const auto [o, S, M] =
      momentum_delta_rule(x[kQ], x[kK], x[kV], x[kAlpha], x[kMu], x[kEta], x[kBeta], std::nullopt,
                          x[kS], x[kM], std::nullopt, 0.4, false);
  EXPECT_LT(relative(got[0], o), kTolerance);
  EXPECT_LT(relative(got[1], S), kTolerance);
  EXPECT_LT(relative(got[2], M), kTolerance);
}

TEST(GeneralMomentumRules, NesterovAndQuasiHyperbolicAsDefined) {
  for (const std::string rule : {"nesterov", "quasi_hyperbolic"}) {
    at::manual_seed(3);
    const Tensor nu = uniform({2, 70, 2});
    const Tensors x = with_rule(rule, nu);
    Tensor S = x[kS], M = x[kM];
    Tensors o;
    for (int64_t t = 0; t < 70; ++t) {
      const auto now = [&](Input i) { return x[i].select(1, t); };
      const auto gate = [](const Tensor& g) { return g.unsqueeze(-1).unsqueeze(-1); };
      const Tensor k = now(kK).unsqueeze(2), q = now(kQ).unsqueeze(2);
      const Tensor alpha = gate(now(kAlpha)), beta = gate(now(kBeta)), mu = gate(now(kMu));
      const Tensor ahead = alpha * S - (rule == "nesterov" ? beta * mu * M : at::zeros_like(M));
      const Tensor r = now(kV) - (ahead * k).sum(-1);
      const Tensor gradient = -gate(now(kEta)) * r.unsqueeze(-1) * k;
      M = mu * M + gradient;
      const Tensor mix = rule == "nesterov" ? at::ones_like(mu) : gate(nu.select(1, t));
      S = alpha * S - beta * ((1 - mix) * gradient + mix * M);
      o.push_back(0.4 * (S * q).sum(-1));
    }
    const Tensors got = chunkwise(x, 0.4);
    EXPECT_LT(relative(got[0], at::stack(o, 1)), kTolerance) << rule;
    EXPECT_LT(relative(got[1], S), kTolerance) << rule;
    EXPECT_LT(relative(got[2], M), kTolerance) << rule;
  }
}

TEST(GeneralMomentumRules, SequencesThatArePackedAreApart) {
  const Case c{.B = 1, .T = 140};
  const Tensors x = make_inputs(c);
  const std::vector<int64_t> cuts = {0, 1, 1, 30, 95, 140};
  const int64_t N = 5;
  Tensors packed = x;
  at::manual_seed(11);
  packed[kS] = at::randn({N, c.HV, c.V, c.K}, at::kDouble);
  packed[kM] = at::randn({N, c.HV, c.V, c.K}, at::kDouble);
  const Tensors together = chunkwise(packed, 0.4, at::tensor(cuts, at::kLong), true);
  for (int64_t n = 0; n < N; ++n) {
    const int64_t length = cuts[n + 1] - cuts[n];
    if (length == 0) {
      EXPECT_TRUE(at::equal(together[1][n], packed[kS][n]));
      EXPECT_TRUE(at::equal(together[2][n], packed[kM][n]));
      continue;
    }
    Tensors alone;
    for (size_t i = kQ; i <= kPi; ++i) {
      alone.push_back(x[i].narrow(1, cuts[n], length));
    }
    alone.push_back(packed[kS].narrow(0, n, 1));
    alone.push_back(packed[kM].narrow(0, n, 1));
    const Tensors want = chunkwise(alone, 0.4, std::nullopt, true);
    EXPECT_LT(relative(together[0].narrow(1, cuts[n], length), want[0]), kTolerance) << n;
    EXPECT_LT(relative(together[1][n], want[1][0]), kTolerance) << n;
    EXPECT_LT(relative(together[2][n], want[2][0]), kTolerance) << n;
  }
}

// Not one element of another sequence's, even a NaN, gets across a boundary.
TEST(GeneralMomentumRules, ANanStaysInItsSequence) {
  const Case c{.B = 1, .T = 50};
  Tensors x = make_inputs(c);
  x[kV][0][10].fill_(NAN);
  x[kS] = at::zeros({2, c.HV, c.V, c.K}, at::kDouble);
  x[kM] = at::zeros_like(x[kS]);
  const auto out = chunkwise(x, 0.4, at::tensor(std::vector<int64_t>{0, 20, 50}, at::kLong));
  EXPECT_TRUE(at::isnan(out[0].narrow(1, 10, 10)).any().item<bool>());
  EXPECT_TRUE(at::isfinite(out[0].narrow(1, 20, 30)).all().item<bool>());
}

// Central differences along random directions: off by h² of the third derivative, 1e-10 here, and
// 1e-16/h of rounding.
TEST(GeneralMomentumRules, GradientsAgreeWithDifferences) {
  for (const bool l2norm : {false, true}) {
    Tensors x = make_inputs({.B = 1, .T = 9, .H = 1, .HV = 2, .K = 3, .V = 2});
    for (Tensor& t : x) {
      t.requires_grad_();
    }
    const auto out = chunkwise(x, 0.4, std::nullopt, l2norm);
    Tensors d_out;
    for (const Tensor& t : out) {
      d_out.push_back(at::randn(t.sizes(), at::kDouble));
    }
    const Tensors d = gradients(x, out, d_out);
    const auto loss = [&](const Tensors& at_point) {
      const at::NoGradGuard no_grad;
      const auto y = chunkwise(at_point, 0.4, std::nullopt, l2norm);
      double sum = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        sum += (y[i] * d_out[i]).sum().item<double>();
      }
      return sum;
    };
    constexpr double h = 1e-5;
    for (size_t i = 0; i < x.size(); ++i) {
      const Tensor direction = at::randn(x[i].sizes(), at::kDouble);
      Tensors up = x, down = x;
      up[i] = x[i].detach() + h * direction;
      down[i] = x[i].detach() - h * direction;
      const double difference = (loss(up) - loss(down)) / (2 * h);
      const double derivative = (d[i] * direction).sum().item<double>();
      EXPECT_NEAR(derivative, difference, 1e-7 * (1 + std::abs(difference)))
          << "input " << i << (l2norm ? " normalised" : "");
    }
  }
}

TEST(GeneralMomentumRules, WrongArgumentsAreNamed) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  Tensors x = make_inputs({});
  x[kKappa] = x[kKappa].narrow(1, 0, 3);
  EXPECT_THAT([&] { chunkwise(x, 1); }, ThrowsMessage<Error>(HasSubstr("kappa")));
  x = make_inputs({});
  x[kM] = x[kM].to(at::kFloat);
  EXPECT_THAT([&] { chunkwise(x, 1); }, ThrowsMessage<Error>(HasSubstr("initial_M")));
  x = make_inputs({});
  EXPECT_THAT(
      [&] {
        chunkwise(x, 1, at::tensor(std::vector<int64_t>{0, 70}, at::kLong));
      },
      ThrowsMessage<Error>(HasSubstr("batch must be 1")));
}

}  // namespace
}  // namespace mdn::ops
