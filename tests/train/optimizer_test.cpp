#include "mdn/train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "mdn/core/error.h"
#include "mdn/train/trainer.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

// Parameters with a made-up gradient: of element i of the table, cos(i + shift).
model::Parameters with_gradients(at::ScalarType type, double shift) {
  const model::Config config = model::read_config(golden_model().string());
  model::Parameters parameters = model::Parameters::initialise(config, 3, type);
  parameters.set_requires_grad(true);
  int64_t first = 0;
  for (model::Parameter& p : parameters.entries()) {
    const int64_t n = p.value.numel();
    p.value.mutable_grad() =
        (at::arange(first, first + n, at::kDouble) + shift).cos().view(p.value.sizes()).to(type);
    first += n;
  }
  return parameters;
}

// Two updates against the formulas, in float64: weight decay on exactly the marked parameters.
TEST(AdamW, FollowsTheFormulas) {
  const AdamWOptions o{.beta1 = 0.8, .beta2 = 0.9, .eps = 1e-5, .weight_decay = 0.3};
  const double lr = 0.01;
  model::Parameters parameters = with_gradients(at::kDouble, 0.25);
  std::vector<at::Tensor> theta, m, v;
  for (const model::Parameter& p : parameters.entries()) {
    theta.push_back(p.value.detach().clone());
    m.push_back(at::zeros_like(theta.back()));
    v.push_back(at::zeros_like(theta.back()));
  }
  AdamW adam(parameters, o);
  int decayed = 0;
  for (int t = 1; t <= 2; ++t) {
    adam.step(lr);
    for (size_t i = 0; i < theta.size(); ++i) {
      const model::Parameter& p = parameters.entries()[i];
      const at::Tensor g = p.value.grad();
      const double decay = p.spec.decay ? o.weight_decay : 0;
      decayed += p.spec.decay;
      m[i] = o.beta1 * m[i] + (1 - o.beta1) * g;
      v[i] = o.beta2 * v[i] + (1 - o.beta2) * g * g;
      const at::Tensor m_hat = m[i] / (1 - std::pow(o.beta1, t));
      const at::Tensor v_hat = v[i] / (1 - std::pow(o.beta2, t));
      theta[i] = theta[i] * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + o.eps);
      // A dozen roundings of 1.1e-16 an update, of numbers near 1: 1e-14 in all.
      EXPECT_LE((theta[i] - p.value.detach()).abs().max().item<double>(), 1e-14) << p.spec.name;
    }
  }
  EXPECT_GT(decayed, 0);
  EXPECT_LT(decayed, 2 * static_cast<int>(theta.size()));
  EXPECT_EQ(adam.updates(), 2);
}

TEST(AdamW, StateLoadsAndContinuesBitForBit) {
  const Scratch scratch;
  model::Parameters a = with_gradients(at::kFloat, 0.5), b = with_gradients(at::kFloat, 0.5);
  AdamW one(a, {}), two(b, {});
  one.step(0.1);
  std::vector<TensorView> views;
  for (const auto& [name, tensor] : one.state()) {
    TensorView view;
    static_cast<TensorInfo&>(view) = model::info_of(name, tensor);
    view.data = model::bytes_of(tensor);
    views.push_back(view);
  }
  write_safetensors(scratch / "o.safetensors", views);
  const SafetensorsFile file(scratch / "o.safetensors");
  {
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < a.entries().size(); ++i) {
      b.entries()[i].value.copy_(a.entries()[i].value);
    }
  }
  two.load(file, one.updates(), {});
  one.step(0.1);
  two.step(0.1);
  for (size_t i = 0; i < a.entries().size(); ++i) {
    EXPECT_TRUE(at::equal(a.entries()[i].value, b.entries()[i].value)) << a.entries()[i].spec.name;
  }

  // What does not fit is named.
  model::Parameters doubles = with_gradients(at::kDouble, 0.5);
  AdamW other(doubles, {});
  EXPECT_THROW(other.load(file, 1, {}), Error);
  views.push_back(views.back());
  views.back().name = "exp_avg.nobody";
  write_safetensors(scratch / "more.safetensors", views);
  const SafetensorsFile more(scratch / "more.safetensors");
  try {
    two.load(more, 1, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("exp_avg.nobody"));
  }
  EXPECT_NO_THROW(two.load(more, 1, {"exp_avg.nobody"}));
}

TEST(Gradients, NormScaleAndTheFirstBadOne) {
  model::Parameters parameters = with_gradients(at::kDouble, 0.0);
  double squares = 0;
  for (int64_t i = 0; i < parameters.count(); ++i) {
    squares += std::cos(static_cast<double>(i)) * std::cos(static_cast<double>(i));
  }
  // A sum of n = 1e5 squares: at most n eps in all, and far less by pairwise summation.
  EXPECT_NEAR(gradient_norm(parameters) / std::sqrt(squares), 1, 1e-12);
  scale_gradients(parameters, 0.5);
  EXPECT_NEAR(gradient_norm(parameters) / std::sqrt(squares), 0.5, 1e-12);

  EXPECT_EQ(first_bad_gradient(parameters), "");
  auto& entries = parameters.entries();
  entries[7].value.mutable_grad().view(-1)[0] = std::numeric_limits<double>::infinity();
  entries[3].value.mutable_grad().view(-1)[1] = std::nan("");
  EXPECT_EQ(first_bad_gradient(parameters), entries[3].spec.name);
  EXPECT_FALSE(std::isfinite(gradient_norm(parameters)));
}

}  // namespace
}  // namespace mdn::train
