// Generation against the model called directly, batched against alone, saved against carried on.
#include "mdn/generate/generator.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "mdn/core/error.h"
#include "mdn/generate/attention_cache.h"

namespace mdn::generate {
namespace {

using testing::HasSubstr;

model::Config config_of(const std::string& name) {
  return model::read_config(MDN_TEST_DATA "/goldens/" + name);
}

// float64: argmax and draws cannot be tipped by rounding.
model::Decoder decoder_of(const std::string& name, uint64_t seed = 5,
                          at::ScalarType type = at::kDouble) {
  const model::Config config = config_of(name);
  return model::Decoder(config, model::Parameters::initialise(config, seed, type));
}

std::vector<int64_t> ids_of(int64_t count, int64_t salt = 0) {
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back((i * 37 + salt * 11 + 3) % 97);
  }
  return ids;
}

// Greedy continuation by running the whole sequence anew for every token.
std::vector<int64_t> slow_greedy(const model::Decoder& decoder, std::vector<int64_t> ids,
                                 int64_t count) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> made;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor hidden = decoder.hidden(at::tensor(ids, at::kLong).unsqueeze(0));
    const at::Tensor logits = decoder.logits(hidden.select(1, hidden.size(1) - 1));
    ids.push_back(logits.to(at::kFloat).argmax().item<int64_t>());
    made.push_back(ids.back());
  }
  return made;
}

Request request_of(std::vector<int64_t> prompt, int64_t max_tokens, double temperature = 1.0) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampler.temperature = temperature;
  request.random = RandomStream{.seed = 3};
  return request;
}

std::vector<int64_t> alone(const model::Decoder& decoder, const Request& request) {
  return Generator(decoder).run({request}).front().tokens;
}

class Models : public testing::TestWithParam<const char*> {};

TEST_P(Models, GreedyEqualsTheWholeSequenceRunAnew) {
  const model::Decoder decoder = decoder_of(GetParam());
  for (int64_t length : {1, 2, 5, 70}) {
    EXPECT_EQ(alone(decoder, request_of(ids_of(length), 12, 0)),
              slow_greedy(decoder, ids_of(length), 12))
        << length;
  }
}

TEST_P(Models, ManyPromptsEqualOneByOne) {
  const model::Decoder decoder = decoder_of(GetParam());
  std::vector<Request> requests;
  std::vector<std::vector<int64_t>> want;
  for (int64_t i = 0; i < 9; ++i) {
    // lengths that repeat, and passages that end at different moments
    Request request = request_of(ids_of(1 + (i % 4) * 9, i), 3 + (i * 5) % 11);
    request.random->stream = static_cast<uint64_t>(i % 2);
    want.push_back(alone(decoder, request));
    EXPECT_EQ(static_cast<int64_t>(want.back().size()), request.max_tokens);
    requests.push_back(std::move(request));
  }
  for (int64_t batch : {1, 2, 4, 16}) {
    const auto passages = Generator(decoder, {.batch = batch}).run(requests);
    for (size_t i = 0; i < requests.size(); ++i) {
      EXPECT_EQ(passages[i].tokens, want[i]) << "batch " << batch << ", prompt " << i;
      EXPECT_EQ(passages[i].finish, Finish::kLength);
    }
  }
}

TEST_P(Models, SavedContextContinuesWithTheSameTokens) {
  const model::Decoder decoder = decoder_of(GetParam());
  Request request = request_of(ids_of(40), 30);
  request.sampler.repetition_penalty = 1.3;
  const auto want = alone(decoder, request);

  request.max_tokens = 11;
  Generator generator(decoder, {.keep_contexts = true});
  Passage first = generator.run({request}).front();
  const std::filesystem::path path =
      std::filesystem::path(testing::TempDir()) / fmt::format("context_{}", GetParam());
  save_context(path, first.context, decoder);
  const Context loaded = load_context(path, decoder);
  std::filesystem::remove(path);
  EXPECT_EQ(loaded.state.position, 40 + 11 - 1);
  EXPECT_EQ(loaded.pending, first.tokens.back());

  Request rest;
  rest.start = &loaded;
  rest.sampler = request.sampler;
  rest.max_tokens = 19;
  // twice: a start is copied, not used up
  for (int repeat = 0; repeat < 2; ++repeat) {
    std::vector<int64_t> got = first.tokens;
    const auto more = generator.run({rest}).front().tokens;
    got.insert(got.end(), more.begin(), more.end());
    EXPECT_EQ(got, want);
  }
}

TEST_P(Models, ContinuingWithAPromptEqualsReadingAll) {
  const model::Decoder decoder = decoder_of(GetParam());
  const auto all = ids_of(60);
  Context context = new_context(decoder);
  read(decoder, context, std::span(all).first(25));
  Request rest = request_of({all.begin() + 25, all.end()}, 10, 0);
  rest.start = &context;
  EXPECT_EQ(alone(decoder, rest), slow_greedy(decoder, all, 10));
}

// Prompts of these lengths, of which one of 9 tokens is appended to a text, read together and
// alone.
void expect_same_states(const model::Decoder& decoder, const std::vector<int64_t>& lengths,
                        double tolerance) {
  std::vector<Context> want, got;
  std::vector<std::vector<int64_t>> prompts;
  for (const int64_t length : lengths) {
    prompts.push_back(ids_of(length, length + static_cast<int64_t>(prompts.size())));
    want.push_back(new_context(decoder));
    if (length == 9) {
      read(decoder, want.back(), ids_of(12));
    }
    got.push_back(clone(want.back()));
    read(decoder, want.back(), prompts.back());
  }
  std::vector<Context*> contexts;
  std::vector<std::span<const int64_t>> ids;
  for (size_t i = 0; i < got.size(); ++i) {
    contexts.push_back(&got[i]);
    ids.emplace_back(prompts[i]);
  }
  read_together(decoder, contexts, ids);
  for (size_t i = 0; i < got.size(); ++i) {
    SCOPED_TRACE(fmt::format("prompt {}", i));
    EXPECT_EQ(got[i].pending, want[i].pending);
    EXPECT_EQ(got[i].seen.ids(), want[i].seen.ids());
    EXPECT_EQ(got[i].state.position, want[i].state.position);
    for (size_t layer = 0; layer < got[i].state.layers.size(); ++layer) {
      const auto got_fields = layers::state_fields(got[i].state.layers[layer]);
      const auto want_fields = layers::state_fields(want[i].state.layers[layer]);
      for (size_t f = 0; f < got_fields.size(); ++f) {
        const at::Tensor &x = *got_fields[f].second, &y = *want_fields[f].second;
        ASSERT_EQ(x.defined(), y.defined()) << got_fields[f].first;
        if (y.defined()) {
          ASSERT_EQ(x.sizes(), y.sizes()) << got_fields[f].first;
          EXPECT_LE((x - y).norm().item<double>(), tolerance * y.norm().item<double>())
              << got_fields[f].first;
        }
      }
    }
  }
}

class RecurrentModels : public testing::TestWithParam<const char*> {};

// Lengths below a convolution's width, above a chunk, and of nothing to read.
TEST_P(RecurrentModels, PromptsReadTogetherEqualThoseReadAlone) {
  expect_same_states(decoder_of(GetParam()), {5, 1, 2, 3, 70, 9, 33}, 1e-12);
}

TEST(Context, CachesHoldWhatTheDecoderCarries) {
  for (const int64_t window : {0, 1, 5, 100}) {
    SCOPED_TRACE(fmt::format("window {}", window));
    model::Config config = config_of("mdn_hybrid");
    config.attention.at(1).window_size = window > 0 ? std::optional(window) : std::nullopt;
    const model::Decoder decoder(config, model::Parameters::initialise(config, 5, at::kDouble));
    Context context = new_context(decoder);
    read(decoder, context, ids_of(21));
    model::DecoderState state = clone(context).state;
    to_caches(decoder, state, 32);
    const auto& cached = std::get<layers::AttentionState>(state.layers[1]);
    EXPECT_EQ(cached.k.size(2), 32);
    grow_caches(state, 64);
    EXPECT_EQ(cached.v.size(2), 64);
    from_caches(decoder, state);
    const auto& want = std::get<layers::AttentionState>(context.state.layers[1]);
    EXPECT_TRUE(at::equal(cached.k, want.k));
    EXPECT_TRUE(at::equal(cached.v, want.v));
    EXPECT_EQ(cached.position, want.position);
  }
}

TEST(Context, FullPacksAreReadOneAfterTheOther) {
  expect_same_states(decoder_of("gdn", 5, at::kFloat), {4000, 4000, 4000, 4000, 4000, 7}, 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Generator, RecurrentModels,
                         testing::Values("mdn", "gdn", "comba", "kda", "mamba2"));
INSTANTIATE_TEST_SUITE_P(Generator, Models,
                         testing::Values("mdn", "mdn_plain", "mdn_lora", "mdn_hybrid"));

TEST(Generator, BatchesOfFloat32EqualOneByOne) {
  // the stepper: the same bits in any company
  const model::Decoder decoder = decoder_of("mdn", 5, at::kFloat);
  std::vector<Request> requests;
  for (int64_t i = 0; i < 6; ++i) {
    requests.push_back(request_of(ids_of(3 + 7 * i, i), 20));
  }
  const auto passages = Generator(decoder).run(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(passages[i].tokens, alone(decoder, requests[i])) << i;
  }
}

TEST(Generator, SeedsAndStreamsDecide) {
  const model::Decoder decoder = decoder_of("mdn");
  Request request = request_of(ids_of(9), 25);
  const auto first = alone(decoder, request);
  EXPECT_EQ(alone(decoder, request), first);
  request.random->stream = 1;
  EXPECT_NE(alone(decoder, request), first);
  request.random = RandomStream{.seed = 4};
  EXPECT_NE(alone(decoder, request), first);
}

TEST(Generator, EndTokenEndsAndIsNotReported) {
  const model::Decoder decoder = decoder_of("mdn");
  Request request = request_of(ids_of(9), 25);
  const auto all = alone(decoder, request);
  const int64_t end = all[6];
  const auto first = std::find(all.begin(), all.end(), end);
  request.end_tokens = {1 << 20, end};
  std::vector<int64_t> seen;
  const auto on_token = [&](size_t, int64_t id) {
    seen.push_back(id);
    return true;
  };
  const Passage passage = Generator(decoder).run({request}, on_token).front();
  EXPECT_EQ(passage.finish, Finish::kEndToken);
  EXPECT_EQ(passage.tokens, std::vector<int64_t>(all.begin(), first));
  EXPECT_EQ(passage.tokens, seen);
}

TEST(Generator, CallerStopsOnePassageOnly) {
  const model::Decoder decoder = decoder_of("mdn");
  const std::vector<Request> requests(3, request_of(ids_of(5), 8));
  std::vector<int> counts(3);
  const auto passages = Generator(decoder).run(
      requests, [&](size_t r, int64_t) { return ++counts[r] < (r == 1 ? 4 : 100); });
  EXPECT_EQ(passages[0].tokens.size(), 8u);
  EXPECT_EQ(passages[1].tokens.size(), 4u);
  EXPECT_EQ(passages[1].finish, Finish::kStopped);
  EXPECT_EQ(passages[2].tokens, passages[0].tokens);
}

TEST(Generator, InterruptEndsEverythingAndKeepsContexts) {
  const model::Decoder decoder = decoder_of("mdn");
  std::atomic<bool> interrupt{false};
  Generator generator(decoder, {.batch = 2, .keep_contexts = true});
  const std::vector<Request> requests(4, request_of(ids_of(5), 1000));
  int made = 0;
  const auto passages = generator.run(
      requests,
      [&](size_t, int64_t) {
        interrupt = ++made >= 10;
        return true;
      },
      &interrupt);
  for (const Passage& passage : passages) {
    EXPECT_EQ(passage.finish, Finish::kInterrupted);
  }
  EXPECT_LE(made, 11);
  EXPECT_EQ(passages[0].context.state.position,
            static_cast<int64_t>(5 + passages[0].tokens.size()) - 1);
  EXPECT_TRUE(passages[3].tokens.empty());
}

TEST(Generator, NoTokensReadsThePrompt) {
  const model::Decoder decoder = decoder_of("mdn");
  Generator generator(decoder, {.keep_contexts = true});
  const Passage passage = generator.run({request_of(ids_of(50), 0)}).front();
  EXPECT_TRUE(passage.tokens.empty());
  EXPECT_EQ(passage.context.state.position, 49);
  EXPECT_EQ(generator.timing().prefill_tokens, 49);
  EXPECT_EQ(generator.timing().decode_tokens, 0);
}

TEST(Generator, StateDoesNotGrow) {
  const model::Decoder decoder = decoder_of("mdn");
  const auto bytes_after = [&](int64_t tokens) {
    Generator generator(decoder, {.keep_contexts = true});
    const Passage passage = generator.run({request_of(ids_of(5), tokens)}).front();
    const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "grow";
    save_context(path, passage.context, decoder);
    const auto size = std::filesystem::file_size(path);
    std::filesystem::remove(path);
    return size;
  };
  // but for the list of distinct tokens, 4 bytes each at most, and digits in the header
  EXPECT_NEAR(static_cast<double>(bytes_after(300)), static_cast<double>(bytes_after(3)),
              4 * 256 + 64);
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Generator, BadRequestsAreErrorsBeforeAnythingIsRead) {
  const model::Decoder decoder = decoder_of("mdn");
  const auto failed = [&](Request bad) {
    Generator generator(decoder);
    const std::string text = message([&] {
      generator.run({request_of(ids_of(5), 3), std::move(bad)});
    });
    EXPECT_EQ(generator.timing().prefill_tokens, 0);
    return text;
  };
  EXPECT_THAT(failed(request_of({}, 3)), HasSubstr("prompt 2 is empty"));
  EXPECT_THAT(failed(request_of({1, 256}, 3)),
              HasSubstr("token id 256 is not in the model's vocabulary of 256 (0 to 255)"));
  EXPECT_THAT(failed(request_of({-1}, 3)), HasSubstr("token id -1"));
  EXPECT_THAT(failed(request_of({1}, -3)), HasSubstr("max tokens is -3"));
  EXPECT_THAT(failed(request_of({1}, 3, -1)), HasSubstr("temperature"));
  EXPECT_THAT(message([&] { Generator(decoder, {.batch = 0}); }), HasSubstr("batch is 0"));
}

TEST(Context, FilesOfOtherModelsAreRefused) {
  const model::Decoder decoder = decoder_of("mdn");
  Context context = new_context(decoder);
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "context";
  EXPECT_THAT(message([&] { save_context(path, context, decoder); }), HasSubstr("no token"));
  read(decoder, context, ids_of(8));
  save_context(path, context, decoder);
  EXPECT_EQ(message([&] { load_context(path, decoder); }), "");
  EXPECT_THAT(message([&] { load_context(path, decoder_of("mdn", 6)); }),
              HasSubstr("other weights"));
  EXPECT_THAT(message([&] { load_context(path, decoder_of("mdn", 5, at::kFloat)); }),
              HasSubstr("--dtype"));
  EXPECT_NE(message([&] { load_context(path, decoder_of("mdn_hybrid")); }), "");
  model::save_state(path, context.state, decoder.config());
  EXPECT_THAT(message([&] { load_context(path, decoder); }), HasSubstr("context.model"));
  EXPECT_NE(message([&] { load_context(path.string() + ".none", decoder); }), "");
  std::filesystem::remove(path);
}

TEST(Context, LongPromptsAreReadInParts) {
  const model::Decoder decoder = decoder_of("mdn", 5, at::kDouble);
  const auto ids = ids_of(kReadTokens + 30);
  Context context = new_context(decoder);
  read(decoder, context, ids);
  EXPECT_EQ(context.state.position, kReadTokens + 29);
  const at::NoGradGuard no_grad;
  model::DecoderState whole = decoder.new_state();
  decoder.hidden(at::tensor(ids, at::kLong).narrow(0, 0, kReadTokens + 29).unsqueeze(0), {},
                 &whole);
  const auto S = [](const model::DecoderState& state) {
    return std::get<layers::MomentumDeltaNetState>(state.layers[1]).S;
  };
  // the same recurrence in float64, cut once: rounding of 1e-16 over 4,000 tokens
  EXPECT_LT((S(context.state) - S(whole)).norm().item<double>(),
            1e-11 * S(whole).norm().item<double>());
}

}  // namespace
}  // namespace mdn::generate
