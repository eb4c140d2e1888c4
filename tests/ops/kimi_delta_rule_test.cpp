// kimi_delta_rule: the reference against the golden file of the published recurrence, the chunkwise
// program against the reference, and the promises about states. The reference's gradient is held to
// numerical derivatives in tests/python/test_kimi_delta_rule.py.
#include "mdn/ops/kimi_delta_rule.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "mdn/core/error.h"
#include "mdn/io/safetensors.h"
#include "mdn/ops/kimi_delta_rule_chunks.h"
#include "tests/support/kimi_delta_rule_cases.h"

namespace mdn::ops {
namespace {

using at::Tensor;

using test::Decay;
using Case = test::KimiDeltaRuleCase;

std::optional<Tensor> cu_seqlens_of(const Case& c) {
  return c.bounds.empty() ? std::nullopt : std::optional(at::tensor(c.bounds, at::kLong));
}

/// In float64, rounded to `type`; q, k, v, alpha, beta, S, then the gradients of o and of S.
struct Data {
  std::vector<Tensor> x;
  Tensor d_o, d_S;
};

Tensor log_decay(Decay decay, const std::vector<int64_t>& shape, const at::Generator& generator) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const Tensor uniform = at::rand(shape, generator, options);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  switch (decay) {
    case Decay::kMild:
      return uniform * -0.1;
    case Decay::kLayer:
      return uniform * -5;
    case Decay::kNone:
      return at::zeros(shape, options);
    case Decay::kMinus20:
      return at::full(shape, -20.0, options);
    case Decay::kMinus200:
      return at::full(shape, -200.0, options);
    case Decay::kAll:
      return at::full(shape, -kInfinity, options);
    case Decay::kMixed:
      return at::tensor({0.0, -1e-3, -20.0, -200.0, -kInfinity}, options)
          .index_select(0, (uniform * 5).to(at::kLong).flatten())
          .view(shape);
  }
  return {};
}

Data make_data(const Case& c, at::ScalarType type, uint64_t seed = 3) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](std::vector<int64_t> shape) {
    return at::randn(shape, generator, at::TensorOptions().dtype(at::kDouble));
  };
  const auto unit = [&](const Tensor& x) {
    return c.l2norm ? x * 3 : x / x.norm(2, -1, true).clamp_min(1e-3);
  };
  Tensor k = normal({c.B, c.T, c.H, c.K});
  if (c.key_cosine > 0) {
    k = k * std::sqrt(1 - c.key_cosine) + normal({1, 1, c.H, c.K}) * std::sqrt(c.key_cosine);
  }
  Data data;
  data.x = {unit(normal({c.B, c.T, c.H, c.K})),
            unit(k),
            normal({c.B, c.T, c.HV, c.V}),
            log_decay(c.decay, {c.B, c.T, c.HV, c.K}, generator).exp(),
            at::rand({c.B, c.T, c.HV}, generator, at::TensorOptions().dtype(at::kDouble)) * c.beta,
            normal({c.sequences(), c.HV, c.V, c.K}) * 0.25};
  data.d_o = normal({c.B, c.T, c.HV, c.V});
  data.d_S = normal({c.sequences(), c.HV, c.V, c.K}) * 0.25;
  for (Tensor& x : data.x) {
    x = x.to(type).to(at::kDouble);
  }
  data.d_o = data.d_o.to(type).to(at::kDouble);
  data.d_S = data.d_S.to(type).to(at::kDouble);
  return data;
}

const std::vector<const char*> kNames = {"o",   "final_S", "d_q",    "d_k",
                                         "d_v", "d_alpha", "d_beta", "d_initial_S"};

/// Outputs and gradients by the operator in `type`, back in float64.
std::vector<Tensor> by_operator(const Case& c, const Data& data, at::ScalarType type) {
  std::vector<Tensor> x;
  for (const Tensor& t : data.x) {
    x.push_back(t.to(type).detach().requires_grad_(true));
  }
  const auto [o, S] =
      kimi_delta_rule(x[0], x[1], x[2], x[3], x[4], c.states ? std::optional(x[5]) : std::nullopt,
                      cu_seqlens_of(c), std::nullopt, c.l2norm);
  if (!c.states) {
    x.pop_back();
  }
  std::vector<Tensor> results = {o.detach(), S.detach()};
  for (const Tensor& d : torch::autograd::grad({o, S}, x, {data.d_o.to(type), data.d_S.to(type)})) {
    results.push_back(d);
  }
  for (Tensor& t : results) {
    t = t.to(at::kDouble);
  }
  return results;
}

std::vector<Tensor> by_chunks(const Case& c, const Data& data) {
  const kimi_chunks::Call call{.q = data.x[0],
                               .k = data.x[1],
                               .v = data.x[2],
                               .alpha = data.x[3],
                               .beta = data.x[4],
                               .initial_S = c.states ? std::optional(data.x[5]) : std::nullopt,
                               .bounds = c.bounds,
                               .scale = 1 / std::sqrt(double(c.K)),
                               .l2norm = c.l2norm};
  const auto [o, S] = kimi_chunks::forward(call, {});
  const auto d = kimi_chunks::backward(call, at::empty({0}), data.d_o, data.d_S);
  std::vector<Tensor> results = {o, S, d.q, d.k, d.v, d.alpha, d.beta};
  if (c.states) {
    results.push_back(d.initial_S);
  }
  return results;
}

double relative(const Tensor& got, const Tensor& want) {
  const double norm = want.norm().item<double>(), error = (got - want).norm().item<double>();
  return norm > 0 ? error / norm : error;
}

/// By how much each result may be off in arithmetic of unit roundoff u: docs/numerics.md, the
/// operator's tolerance. The sensitivity is measured at 2^-24 and is linear.
std::vector<double> tolerances(const Case& c, const Data& data, const std::vector<Tensor>& want,
                               double u) {
  constexpr double kShake = 0x1p-24;
  const at::Generator generator = at::detail::createCPUGenerator(99);
  const auto shake = [&](const Tensor& x) {
    const Tensor sign = at::rand(x.sizes(), generator, x.options()).lt(0.5).to(at::kDouble) * 2 - 1;
    return x * (1 + sign * kShake);
  };
  Data shaken = data;
  for (Tensor& x : shaken.x) {
    x = shake(x);
  }
  shaken.d_o = shake(data.d_o);
  shaken.d_S = shake(data.d_S);
  const auto answers = by_operator(c, shaken, at::kDouble);
  std::vector<double> allowed;
  for (size_t i = 0; i < want.size(); ++i) {
    const double rho = relative(answers[i], want[i]) / kShake;
    allowed.push_back(u * (1 + std::sqrt(double(c.K + c.V + c.T)) +
                           double(2 * c.K + kimi_chunks::kChunk) / 3 * rho));
  }
  return allowed;
}

void expect_close(const std::vector<Tensor>& got, const std::vector<Tensor>& want,
                  const std::vector<double>& allowed) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    if (want[i].norm().item<double>() == 0) {
      EXPECT_EQ(got[i].norm().item<double>(), 0) << kNames[i];
    } else {
      EXPECT_LE(relative(got[i], want[i]), allowed[i]) << kNames[i];
    }
  }
}

class KimiDeltaRule : public testing::TestWithParam<Case> {};

TEST_P(KimiDeltaRule, ChunksEqualTheReferenceInFloat64) {
  const Case& c = GetParam();
  const Data data = make_data(c, at::kDouble);
  const auto want = by_operator(c, data, at::kDouble);
  // Both sides round, hence twice.
  expect_close(by_chunks(c, data), want, tolerances(c, data, want, 2 * 0x1p-53));
}

TEST_P(KimiDeltaRule, Float32) {
  const Case& c = GetParam();
  const Data data = make_data(c, at::kFloat);
  const auto want = by_operator(c, data, at::kDouble);
  expect_close(by_operator(c, data, at::kFloat), want, tolerances(c, data, want, 0x1p-24));
}

INSTANTIATE_TEST_SUITE_P(Ops, KimiDeltaRule, testing::ValuesIn(test::kimi_delta_rule_cases()),
                         [](const testing::TestParamInfo<Case>& test) { return test.param.name; });

Tensor read(const SafetensorsFile& file, const std::string& name) {
  const TensorView& view = file.at(name);
  MDN_CHECK(view.dtype == FileDType::kF32, "{} is {}", name, name_of(view.dtype));
  Tensor x = at::empty(view.shape, at::kFloat);
  std::memcpy(x.mutable_data_ptr(), view.data.data(), view.data.size());
  return x.to(at::kDouble);
}

TEST(KimiDeltaRuleGolden, ReferenceAndChunksAgree) {
  const std::string folder = MDN_TEST_DATA "/goldens/ops/";
  const SafetensorsFile inputs(folder + "inputs.safetensors"), file(folder + "kda.safetensors");
  const auto row = [&](const char* name) { return read(inputs, name).narrow(0, 0, 1); };
  const auto state = [](const Tensor& x) { return x.mT().contiguous(); };  // golden: [K, V]
  const Tensor alpha = read(file, "g").exp();
  const Data data{.x = {row("q"), row("k"), row("v"), alpha, read(file, "beta"), state(row("s0"))},
                  .d_o = row("do"),
                  .d_S = state(row("dst"))};
  const Case c{.name = "golden", .T = 130, .H = 2, .HV = 2, .K = 32, .V = 64};
  const std::vector<Tensor> want = {read(file, "o"),         state(read(file, "st")),
                                    read(file, "grad.q"),    read(file, "grad.k"),
                                    read(file, "grad.v"),    read(file, "grad.g"),
                                    read(file, "grad.beta"), state(read(file, "grad.s0"))};
  for (auto results : {by_operator(c, data, at::kDouble), by_chunks(c, data)}) {
    results[5] *= alpha;  // d log alpha = d alpha alpha
    for (size_t i = 0; i < want.size(); ++i) {
      // The file holds float32 roundings of float64 results.
      EXPECT_LT(relative(results[i], want[i]), 2 * 0x1p-24) << kNames[i];
    }
  }
}

// The tokens [begin, end) of a call.
Data part_of(const Data& data, int64_t begin, int64_t end, const Tensor& S) {
  Data part = data;
  for (size_t i = 0; i < 5; ++i) {
    part.x[i] = data.x[i].narrow(1, begin, end - begin).contiguous();
  }
  part.x[5] = S;
  part.d_o = data.d_o.narrow(1, begin, end - begin).contiguous();
  return part;
}

TEST(KimiDeltaRuleStates, SplitAnywhereEqualsWhole) {
  const Case c{.name = "split", .B = 2, .T = 130, .H = 2, .HV = 4, .l2norm = true};
  const Data data = make_data(c, at::kDouble);
  const auto whole = by_chunks(c, data);
  for (int64_t split : {1, 63, 64, 65, 129}) {
    Case first = c, second = c;
    first.T = split;
    second.T = c.T - split;
    const auto head = by_chunks(first, part_of(data, 0, split, data.x[5]));
    const auto tail = by_chunks(second, part_of(data, split, c.T, head[1]));
    // float64 sums of some tens of terms over at most 130 tokens
    EXPECT_LT(relative(at::cat({head[0], tail[0]}, 1), whole[0]), 1e-14) << split;
    EXPECT_LT(relative(tail[1], whole[1]), 1e-14) << split;
  }
}

TEST(KimiDeltaRuleStates, StepsEqualTheWhole) {
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    for (int64_t K : {16, 21}) {
      const Case c{.name = "steps", .B = 2, .T = 40, .H = 2, .HV = 4, .K = K, .l2norm = true};
      const Data data = make_data(c, at::kFloat);
      const auto gate = type == at::kDouble ? at::kDouble : at::kFloat;
      std::vector<Tensor> x;
      for (size_t i = 0; i < data.x.size(); ++i) {
        x.push_back(data.x[i].to(i < 3 ? type : gate));
      }
      const auto [o, final_S] =
          kimi_delta_rule(x[0], x[1], x[2], x[3], x[4], x[5], std::nullopt, std::nullopt, true);
      // Slots out of order, with one that belongs to nobody.
      Tensor pool = at::full({3, c.HV, c.V, K}, std::nan(""), x[5].options());
      const Tensor slots = at::tensor(std::vector<int64_t>{2, 0}, at::kLong);
      pool.index_copy_(0, slots, x[5]);
      std::vector<Tensor> steps;
      for (int64_t t = 0; t < c.T; ++t) {
        const auto token = [&](size_t i) { return x[i].select(1, t); };
        steps.push_back(kimi_delta_rule_step(token(0), token(1), token(2), token(3), token(4), pool,
                                             slots, std::nullopt, true));
      }
      // Rounding of the state, once a token, and of bfloat16 outputs on both sides.
      const double u = type == at::kDouble ? 0x1p-53 : 0x1p-24;
      const double allowed = 8 * u * std::sqrt(double(2 * K + c.T));
      const Tensor together = at::stack(steps, 1).to(at::kDouble);
      EXPECT_LT(relative(together, o.to(at::kDouble)),
                allowed + (type == at::kBFloat16 ? 0x1p-8 : 0));
      EXPECT_LT(relative(pool.index_select(0, slots).to(at::kDouble), final_S.to(at::kDouble)),
                allowed);
      EXPECT_TRUE(pool.select(0, 1).isnan().all().item<bool>());
    }
  }
}

TEST(KimiDeltaRuleStates, PackedEqualsTheSequenceAlone) {
  const Case c{.name = "packed", .T = 200, .H = 2, .HV = 4, .bounds = {0, 3, 3, 140, 200}};
  const Data data = make_data(c, at::kFloat);
  const auto together = by_operator(c, data, at::kFloat);
  for (size_t n = 0; n + 1 < c.bounds.size(); ++n) {
    const int64_t begin = c.bounds[n], length = c.bounds[n + 1] - begin;
    const auto at_n = [n](const Tensor& x) { return x.narrow(0, int64_t(n), 1); };
    if (length == 0) {
      EXPECT_TRUE(at::equal(at_n(together[1]), at_n(data.x[5])));
      EXPECT_TRUE(at::equal(at_n(together[7]), at_n(data.d_S)));
      continue;
    }
    Case one = c;
    one.bounds = {};
    one.T = length;
    Data part = part_of(data, begin, begin + length, at_n(data.x[5]));
    part.d_S = at_n(data.d_S);
    const auto alone = by_operator(one, part, at::kFloat);
    for (size_t i = 0; i < alone.size(); ++i) {
      const bool of_state = i == 1 || i == 7;
      const Tensor got = of_state ? at_n(together[i]) : together[i].narrow(1, begin, length);
      // Not the same bits: libraries choose products by the size of a batch.
      EXPECT_LT(relative(got, alone[i]), 16 * 0x1p-24) << kNames[i] << " of " << n;
    }
  }
}

TEST(KimiDeltaRuleStates, NothingOfOneSequenceReachesAnother) {
  Case c{.name = "nan", .T = 100, .bounds = {0, 40, 100}};
  Data data = make_data(c, at::kFloat);
  for (size_t i = 0; i < 5; ++i) {
    data.x[i].narrow(1, 0, 40).fill_(std::nan(""));
  }
  const auto results = by_operator(c, data, at::kFloat);
  for (size_t i : {0, 2, 3, 4, 5, 6}) {
    EXPECT_TRUE(results[i].narrow(1, 40, 60).isfinite().all().item<bool>()) << kNames[i];
  }
  EXPECT_TRUE(results[1].select(0, 1).isfinite().all().item<bool>());
  EXPECT_TRUE(results[7].select(0, 1).isfinite().all().item<bool>());
}

TEST(KimiDeltaRuleStates, BFloat16RowsAreReadExactly) {
  const Case c{.name = "bfloat16", .T = 100, .H = 2, .HV = 4, .l2norm = true};
  const Data data = make_data(c, at::kBFloat16);
  std::vector<Tensor> x;
  for (size_t i = 0; i < data.x.size(); ++i) {
    x.push_back(data.x[i].to(at::kFloat));
  }
  const auto run = [&](at::ScalarType type) {
    return std::get<0>(kimi_delta_rule(x[0].to(type), x[1].to(type), x[2].to(type), x[3], x[4],
                                       x[5], std::nullopt, std::nullopt, true));
  };
  EXPECT_TRUE(at::equal(run(at::kBFloat16), run(at::kFloat).to(at::kBFloat16)));
}

}  // namespace
}  // namespace mdn::ops
