// The stepper against the decoder itself, and a row against its company.
#include "mdn/generate/stepper.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "mdn/core/error.h"
#include "mdn/generate/context.h"

namespace mdn::generate {
namespace {

model::Config config_of(const std::string& name) {
  return model::read_config(MDN_TEST_DATA "/goldens/" + name);
}

model::Decoder decoder_of(const model::Config& config, at::ScalarType type = at::kFloat) {
  return model::Decoder(config, model::Parameters::initialise(config, 5, type));
}

int64_t id_of(int64_t b, int64_t t) {
  return (b * 31 + t * 37 + 3) % 97;
}

at::Tensor ids_of(int64_t B, int64_t first, int64_t count) {
  at::Tensor ids = at::empty({B, count}, at::kLong);
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < count; ++t) {
      ids.mutable_data_ptr<int64_t>()[b * count + t] = id_of(b, first + t);
    }
  }
  return ids;
}

double relative(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor a = got.to(at::kDouble), b = want.to(at::kDouble);
  return ((a - b).norm() / b.norm()).item<double>();
}

// Both begin with the state after `prompt` tokens (0: fresh) and read `count` more, one by one.
void expect_equal_steps(const model::Config& config, int64_t B, int64_t prompt, int64_t count) {
  const at::NoGradGuard no_grad;
  const model::Decoder decoder = decoder_of(config), wide = decoder_of(config, at::kDouble);
  Stepper stepper(decoder);
  model::DecoderState ours = decoder.new_state(), exact = wide.new_state();
  if (prompt > 0) {
    decoder.hidden(ids_of(B, 0, prompt), {}, &ours);
    wide.hidden(ids_of(B, 0, prompt), {}, &exact);
  }
  for (int64_t t = prompt; t < prompt + count; ++t) {
    std::vector<int64_t> ids;
    for (int64_t b = 0; b < B; ++b) {
      ids.push_back(id_of(b, t));
    }
    const at::Tensor got = stepper.step(ids, ours).clone();
    const at::Tensor want = wide.logits(wide.hidden(ids_of(B, t, 1), {}, &exact).select(1, 0));
    // float32 against float64: the tolerance that the goldens have for logits
    ASSERT_LT(relative(got, want), 1e-5) << "token " << t;
    EXPECT_EQ(ours.position, exact.position);
  }
}

TEST(Stepper, EqualsTheDecoder) {
  for (const char* name : {"mdn", "mdn_plain", "mdn_lora", "mdn_hybrid"}) {
    SCOPED_TRACE(name);
    expect_equal_steps(config_of(name), 1, 0, 12);
    expect_equal_steps(config_of(name), 3, 30, 12);
  }
}

TEST(Stepper, OptionsThatTheGoldensLack) {
  model::Config config = config_of("mdn");
  config.momentum_deltanet.num_value_heads = 6;
  config.momentum_deltanet.use_short_conv = false;
  config.momentum_deltanet.predict_with_alpha = false;
  config.momentum_deltanet.output_correction = false;
  config.momentum_deltanet.min_log_mu = std::nullopt;
  expect_equal_steps(config, 2, 5, 10);
  config = config_of("mdn");
  config.momentum_deltanet.conv_size = 2;
  config.momentum_deltanet.gate = model::GateKind::kNone;
  config.tie_word_embeddings = true;
  expect_equal_steps(config, 2, 5, 10);
}

TEST(Stepper, ARowHasTheSameBitsInAnyCompany) {
  const at::NoGradGuard no_grad;
  constexpr int64_t kB = 5;
  const model::Decoder decoder = decoder_of(config_of("mdn"));
  Stepper stepper(decoder);
  std::vector<model::DecoderState> single;
  std::vector<const model::DecoderState*> pointers;
  for (int64_t b = 0; b < kB; ++b) {
    single.push_back(decoder.new_state());
    // different lengths
    decoder.hidden(ids_of(kB, 0, 4 + 9 * b).narrow(0, b, 1), {}, &single.back());
  }
  for (const model::DecoderState& state : single) {
    pointers.push_back(&state);
  }
  model::DecoderState together = join(pointers);
  for (int64_t t = 100; t < 110; ++t) {
    std::vector<int64_t> ids;
    for (int64_t b = 0; b < kB; ++b) {
      ids.push_back(id_of(b, t));
    }
    const at::Tensor all = stepper.step(ids, together).clone();
    for (int64_t b = 0; b < kB; ++b) {
      const auto i = static_cast<size_t>(b);
      EXPECT_TRUE(at::equal(stepper.step({ids[i]}, single[i])[0], all[b])) << b;
    }
  }
}

TEST(Stepper, RefusesWhatItCannotDo) {
  const model::Decoder wide = decoder_of(config_of("mdn"), at::kDouble);
  EXPECT_FALSE(Stepper::supports(wide));
  EXPECT_THROW(Stepper stepper(wide), Error);
  const model::Decoder decoder = decoder_of(config_of("mdn"));
  Stepper stepper(decoder);
  model::DecoderState state = decoder.new_state();
  EXPECT_THROW(stepper.step({256}, state), Error);
  EXPECT_THROW(stepper.step({-1}, state), Error);
  stepper.step({1, 2}, state);
  EXPECT_THROW(stepper.step({1}, state), Error);  // a state of two rows
}

}  // namespace
}  // namespace mdn::generate
