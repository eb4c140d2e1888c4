// The layer against its formulas written out token by token, in float64, with the options that the
// golden file lacks.
#include "mdn/layers/kimi_delta_attention.h"

#include "tests/layers/layer_cases.h"

namespace mdn::layers {
namespace {

struct Case {
  const char* name;
  int64_t H = 2, HV = 2, V = 4;
  bool conv = true, negative = false;
  std::optional<double> lower_bound = std::nullopt;
};

constexpr int64_t kHidden = 12, kKey = 6, kWidth = 3;

KimiDeltaAttention make_layer(const Case& c) {
  KimiDeltaAttention layer;
  auto& [o, w] = layer;
  o.num_heads = c.H;
  o.num_value_heads = c.HV;
  o.head_dim = kKey;
  o.value_dim = c.V;
  o.use_short_conv = c.conv;
  o.conv_size = kWidth;
  o.allow_neg_eigval = c.negative;
  o.lower_bound = c.lower_bound;
  Normal normal(11);
  w.qkv.q_proj = normal({o.keys(), kHidden});
  w.qkv.k_proj = normal({o.keys(), kHidden});
  w.qkv.v_proj = normal({o.values(), kHidden});
  if (c.conv) {
    w.qkv.q_conv1d = normal({o.keys(), 1, kWidth});
    w.qkv.k_conv1d = normal({o.keys(), 1, kWidth});
    w.qkv.v_conv1d = normal({o.values(), 1, kWidth});
  }
  w.f_proj_0 = normal({c.V, kHidden}, 0.3);
  w.f_proj_1 = normal({c.HV * kKey, c.V}, 0.3);
  w.A_log = normal({c.HV});
  w.dt_bias = normal({c.HV * kKey});
  w.b_proj = normal({c.HV, kHidden}, 0.3);
  w.output.g_proj_0 = normal({c.V, kHidden}, 0.3);
  w.output.g_proj_1 = normal({o.values(), c.V}, 0.3);
  w.output.g_proj_1_bias = normal({o.values()});
  w.output.o_norm = normal({c.V});
  w.output.o_proj = normal({kHidden, o.values()});
  return layer;
}

// silu of the causal convolution, or of y itself. y [T, C].
at::Tensor convolved(const at::Tensor& y, const at::Tensor& weight) {
  if (!weight.defined()) {
    return at::silu(y);
  }
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < y.size(0); ++t) {
    at::Tensor sum = at::zeros_like(y[t]);
    for (int64_t back = 0; back < kWidth && back <= t; ++back) {
      sum = sum + weight.select(1, 0).select(1, kWidth - 1 - back) * y[t - back];
    }
    rows.push_back(at::silu(sum));
  }
  return at::stack(rows);
}

// One sequence x [T, D].
at::Tensor by_formulas(const KimiDeltaAttention& layer, const at::Tensor& x) {
  const auto& [o, w] = layer;
  const int64_t T = x.size(0), H = o.num_heads, HV = o.num_value_heads, V = o.value_dim;
  const at::Tensor q = convolved(x.matmul(w.qkv.q_proj.t()), w.qkv.q_conv1d).view({T, H, kKey});
  const at::Tensor k = convolved(x.matmul(w.qkv.k_proj.t()), w.qkv.k_conv1d).view({T, H, kKey});
  const at::Tensor v = convolved(x.matmul(w.qkv.v_proj.t()), w.qkv.v_conv1d).view({T, HV, V});
  const at::Tensor f =
      (x.matmul(w.f_proj_0.t()).matmul(w.f_proj_1.t()) + w.dt_bias).view({T, HV, kKey});
  const at::Tensor g =
      (x.matmul(w.output.g_proj_0.t()).matmul(w.output.g_proj_1.t()) + w.output.g_proj_1_bias)
          .view({T, HV, V});
  const at::Tensor beta = x.matmul(w.b_proj.t()).sigmoid() * (o.allow_neg_eigval ? 2 : 1);
  const auto unit = [](const at::Tensor& y) { return y / (y.square().sum() + 1e-6).sqrt(); };
  std::vector<at::Tensor> S(static_cast<size_t>(HV), at::zeros({kKey, V}, x.options())), rows;
  for (int64_t t = 0; t < T; ++t) {
    std::vector<at::Tensor> heads;
    for (int64_t j = 0; j < HV; ++j) {
      at::Tensor& s = S[static_cast<size_t>(j)];
      const at::Tensor key = unit(k[t][j / (HV / H)]), query = unit(q[t][j / (HV / H)]);
      const at::Tensor rate = w.A_log[j].exp();
      const at::Tensor log_alpha = o.lower_bound ? *o.lower_bound * (rate * f[t][j]).sigmoid()
                                                 : -rate * at::softplus(f[t][j]);
      s = log_alpha.exp().unsqueeze(1) * s;
      s = s + beta[t][j] * at::outer(key, v[t][j] - s.t().matmul(key));
      const at::Tensor out = s.t().matmul(query) / std::sqrt(double(kKey));
      heads.push_back(out / (out.square().mean() + o.norm_eps).sqrt() * w.output.o_norm *
                      g[t][j].sigmoid());
    }
    rows.push_back(at::cat(heads).matmul(w.output.o_proj.t()));
  }
  return at::stack(rows);
}

class KimiDeltaAttentionLayer : public testing::TestWithParam<Case> {};

TEST_P(KimiDeltaAttentionLayer, FollowsItsFormulas) {
  const KimiDeltaAttention layer = make_layer(GetParam());
  const at::Tensor x = Normal(5)({2, 9, kHidden});
  const at::Tensor y = layer(x, {}, nullptr);
  for (int64_t b = 0; b < 2; ++b) {
    EXPECT_LT(relative(y[b], by_formulas(layer, x[b])), kLayerTolerance);
  }
}

TEST_P(KimiDeltaAttentionLayer, StatesCarry) {
  expect_states_carry(make_layer(GetParam()), Normal(6)({2, 9, kHidden}));
}

INSTANTIATE_TEST_SUITE_P(
    Layers, KimiDeltaAttentionLayer,
    testing::Values(Case{.name = "published"}, Case{.name = "grouped_values", .HV = 6, .V = 3},
                    Case{.name = "no_convolution", .conv = false},
                    Case{.name = "negative_eigenvalues", .HV = 4, .negative = true},
                    Case{.name = "bounded_decay", .lower_bound = -5.0}),
    [](const testing::TestParamInfo<Case>& test) { return test.param.name; });

}  // namespace
}  // namespace mdn::layers
