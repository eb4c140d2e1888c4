// The layer against its formulas written out token by token, in float64, with the options that the
// golden file lacks.
#include "mdn/layers/mamba2.h"

#include "tests/layers/layer_cases.h"

namespace mdn::layers {
namespace {

struct Case {
  const char* name;
  int64_t groups = 1;
  bool bias = false, conv_bias = true, norm = true, norm_before_gate = false;
  double low = 0, high = std::numeric_limits<double>::infinity();
};

constexpr int64_t kHidden = 10, kHeads = 4, kChannels = 6, kState = 5, kWidth = 4;

Mamba2 make_layer(const Case& c) {
  Mamba2 layer;
  auto& [o, w] = layer;
  o = {.num_heads = kHeads,
       .head_dim = kChannels,
       .state_size = kState,
       .num_groups = c.groups,
       .conv_size = kWidth,
       .bias = c.bias,
       .conv_bias = c.conv_bias,
       .norm = c.norm,
       .norm_before_gate = c.norm_before_gate,
       .dt_limit_low = c.low,
       .dt_limit_high = c.high};
  Normal normal(7);
  const int64_t rows = o.inner() + o.convolved() + kHeads;
  w.dt_bias = normal({kHeads});
  w.A_log = normal({kHeads});
  w.D = normal({kHeads});
  w.conv1d = normal({o.convolved(), 1, kWidth});
  w.in_proj = normal({rows, kHidden}, 0.4);
  w.out_proj = normal({kHidden, o.inner()});
  if (c.conv_bias) {
    w.conv1d_bias = normal({o.convolved()});
  }
  if (c.bias) {
    w.in_proj_bias = normal({rows});
    w.out_proj_bias = normal({kHidden});
  }
  if (c.norm) {
    w.norm = normal({o.inner()});
  }
  return layer;
}

// One sequence u [T, D].
at::Tensor by_formulas(const Mamba2& layer, const at::Tensor& u) {
  const auto& [o, w] = layer;
  const int64_t E = o.inner(), G = o.num_groups;
  at::Tensor projected = u.matmul(w.in_proj.t());
  if (o.bias) {
    projected = projected + w.in_proj_bias;
  }
  std::vector<at::Tensor> S(kHeads, at::zeros({kChannels, kState}, u.options())), rows;
  for (int64_t t = 0; t < u.size(0); ++t) {
    const at::Tensor z = projected[t].narrow(0, 0, E);
    at::Tensor xBC = o.conv_bias ? w.conv1d_bias : at::zeros({o.convolved()}, u.options());
    for (int64_t back = 0; back < kWidth && back <= t; ++back) {
      xBC = xBC + w.conv1d.select(1, 0).select(1, kWidth - 1 - back) *
                      projected[t - back].narrow(0, E, o.convolved());
    }
    xBC = at::silu(xBC);
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < kHeads; ++h) {
      const int64_t group = h / (kHeads / G);
      const at::Tensor x = xBC.narrow(0, h * kChannels, kChannels);
      const at::Tensor B = xBC.narrow(0, E + group * kState, kState);
      const at::Tensor C = xBC.narrow(0, E + (G + group) * kState, kState);
      const at::Tensor dt = at::softplus(projected[t][E + o.convolved() + h] + w.dt_bias[h])
                                .clamp(o.dt_limit_low, o.dt_limit_high);
      at::Tensor& s = S[static_cast<size_t>(h)];
      s = (-w.A_log[h].exp() * dt).exp() * s + dt * at::outer(x, B);
      heads.push_back(s.matmul(C) + w.D[h] * x);
    }
    at::Tensor y = at::cat(heads);
    const auto normed = [&](const at::Tensor& a) {
      const at::Tensor split = a.view({G, E / G});
      return (split / (split.square().mean(1, true) + o.norm_eps).sqrt()).view({E}) * w.norm;
    };
    if (!o.norm) {
      y = y * at::silu(z);
    } else {
      y = o.norm_before_gate ? normed(y) * at::silu(z) : normed(y * at::silu(z));
    }
    y = w.out_proj.matmul(y);
    rows.push_back(o.bias ? y + w.out_proj_bias : y);
  }
  return at::stack(rows);
}

class Mamba2Layer : public testing::TestWithParam<Case> {};

TEST_P(Mamba2Layer, FollowsItsFormulas) {
  const Mamba2 layer = make_layer(GetParam());
  const at::Tensor u = Normal(5)({2, 9, kHidden});
  const at::Tensor y = layer(u, {}, nullptr);
  for (int64_t b = 0; b < 2; ++b) {
    EXPECT_LT(relative(y[b], by_formulas(layer, u[b])), kLayerTolerance);
  }
}

TEST_P(Mamba2Layer, StatesCarry) {
  expect_states_carry(make_layer(GetParam()), Normal(6)({2, 9, kHidden}));
}

INSTANTIATE_TEST_SUITE_P(
    Layers, Mamba2Layer,
    testing::Values(Case{.name = "published"}, Case{.name = "groups", .groups = 2},
                    Case{.name = "a_group_a_head", .groups = 4, .norm_before_gate = true},
                    Case{.name = "biases", .bias = true},
                    Case{.name = "no_conv_bias", .conv_bias = false},
                    Case{.name = "gate_after_norm", .norm_before_gate = true},
                    Case{.name = "gate_alone", .norm = false},
                    Case{.name = "bounded_steps", .low = 0.5, .high = 0.9}),
    [](const testing::TestParamInfo<Case>& test) { return test.param.name; });

}  // namespace
}  // namespace mdn::layers
