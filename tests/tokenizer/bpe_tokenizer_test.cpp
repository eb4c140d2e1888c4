#include "mdn/tokenizer/bpe_tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "mdn/io/json.h"
#include "mdn/tokenizer/byte_alphabet.h"
#include "mdn/tokenizer/utf8.h"
#include "tests/io/scratch.h"

namespace mdn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::filesystem::path folder_of(const std::string& name) {
  return std::filesystem::path(MDN_TEST_DATA) / "tokenizers" / name;
}

class CommittedTokenizer : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<Tokenizer> tokenizer_ = load_tokenizer(folder_of(GetParam()));
  bool lossless_ = dynamic_cast<const BpeTokenizer&>(*tokenizer_).is_lossless();
};

/// The ids that the package `tokenizers` gives, tests/tokenizer/make_expected.py.
TEST_P(CommittedTokenizer, GivesTheExpectedIds) {
  const Json cases = read_json(folder_of(GetParam()) / "expected.json");
  ASSERT_GT(cases.size(), 200u);
  int with_special = 0;
  for (const Json& entry : cases) {
    const auto text = entry["text"].get<std::string>();
    const auto expected = entry["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer_->encode(text), expected) << text;
    if (lossless_) {
      EXPECT_EQ(tokenizer_->decode(expected), text);
    }
    if (entry.contains("with_special")) {
      ++with_special;
      EXPECT_EQ(tokenizer_->encode(text, {.add_special_tokens = true}),
                entry["with_special"].get<std::vector<int32_t>>())
          << text;
    }
  }
  EXPECT_GT(with_special, 10);
}

TEST_P(CommittedTokenizer, RandomBytesRoundTrip) {
  std::mt19937 rng(17);
  for (int i = 0; i < 1000; ++i) {
    std::string text;
    for (unsigned n = rng() % 100; n > 0; --n) {
      const unsigned kind = rng() % 3;
      text += static_cast<char>(kind == 0 ? rng() % 256 : kind == 1 ? 'a' + rng() % 3 : ' ');
    }
    const std::vector<int32_t> ids = tokenizer_->encode(text);
    for (const int32_t id : ids) {
      ASSERT_LT(id, tokenizer_->vocab_size());
    }
    if (lossless_) {
      ASSERT_EQ(tokenizer_->decode(ids), text);
    }
  }
}

TEST_P(CommittedTokenizer, StreamEqualsDecode) {
  for (const Json& entry : read_json(folder_of(GetParam()) / "expected.json")) {
    const auto ids = entry["ids"].get<std::vector<int32_t>>();
    StreamDecoder stream(*tokenizer_);
    std::string text;
    for (const int32_t id : ids) {
      const std::string part = stream.push(id);
      EXPECT_EQ(utf8_replace_invalid(part), part);  // these texts are UTF-8, so every part is
      text += part;
    }
    text += stream.finish();
    EXPECT_EQ(text, tokenizer_->decode(ids));
  }
}

TEST_P(CommittedTokenizer, SavedTokenizerIsTheSame) {
  const ScratchFolder folder;
  tokenizer_->save(folder.path());
  const auto again = load_tokenizer(folder.path());
  EXPECT_EQ(again->hash(), tokenizer_->hash());
  EXPECT_EQ(again->bos_id(), tokenizer_->bos_id());
  EXPECT_EQ(again->eos_id(), tokenizer_->eos_id());
  EXPECT_EQ(again->encode("Ein Text. 123"), tokenizer_->encode("Ein Text. 123"));
  EXPECT_EQ(load_tokenizer(folder / kTokenizerFile)->hash(), tokenizer_->hash());
}

INSTANTIATE_TEST_SUITE_P(All, CommittedTokenizer,
                         ::testing::Values("gpt2", "llama3", "qwen", "options"),
                         [](const auto& parameter) { return std::string(parameter.param); });

TEST(BpeTokenizer, KnowsItsSpecialTokens) {
  const auto llama = load_tokenizer(folder_of("llama3"));
  EXPECT_EQ(llama->bos_id(), llama->token_id("<|begin_of_text|>"));
  EXPECT_EQ(llama->eos_id(), llama->token_id("<|end_of_text|>"));
  ASSERT_TRUE(llama->eos_id().has_value());
  EXPECT_TRUE(llama->is_special(*llama->eos_id()));
  EXPECT_FALSE(llama->is_special(0));
  EXPECT_EQ(llama->token_bytes(*llama->eos_id()), "<|end_of_text|>");
  EXPECT_EQ(llama->token_id("\n"), llama->encode("\n").front());
  EXPECT_EQ(llama->token_id("no such token"), std::nullopt);
  const auto qwen = load_tokenizer(folder_of("qwen"));
  EXPECT_EQ(qwen->bos_id(), std::nullopt);
  EXPECT_EQ(qwen->eos_id(), qwen->token_id("<|im_end|>"));
  EXPECT_FALSE(qwen->is_special(*qwen->token_id("<tool_call>")));
  const std::vector<int32_t> ids = qwen->encode("a<|im_end|>b");
  EXPECT_EQ(qwen->decode(ids), "a<|im_end|>b");
  EXPECT_EQ(qwen->decode(ids, /*skip_special_tokens=*/true), "ab");
  const std::vector<int32_t> plain =
      qwen->encode("a<|im_end|>b", {.ignore_special_tokens_in_text = true});
  EXPECT_EQ(std::count(plain.begin(), plain.end(), *qwen->eos_id()), 0);
  EXPECT_EQ(qwen->decode(plain), "a<|im_end|>b");
  StreamDecoder stream(*qwen, /*skip_special_tokens=*/true);
  EXPECT_EQ(stream.push(*qwen->eos_id()), "");
}

TEST(BpeTokenizer, IdsOutsideTheVocabularyAreErrors) {
  const auto gpt2 = load_tokenizer(folder_of("gpt2"));
  EXPECT_THAT(error_of([&] { gpt2->token_bytes(-1); }), HasSubstr("token id -1 is outside"));
  EXPECT_THAT(error_of([&] { gpt2->decode(std::vector<int32_t>{3001}); }),
              HasSubstr("token id 3001 is outside the vocabulary of 3001 ids"));
}

/// A tokenizer.json over all bytes with the merges a+b, ab+c.
Json minimal() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    vocab[to_alphabet({&c, 1})] = byte;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", Json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c"}}}}};
}

BpeTokenizer load(const Json& json, const std::string& config = {}) {
  return {json.dump(), "t.json", config};
}

TEST(BpeTokenizer, InvalidBytesAreWordsOfTheirOwn) {
  Json json = minimal();
  const BpeTokenizer plain = load(json);
  EXPECT_THAT(plain.encode("ab\xFF\xFE"
                           "abc"),
              ElementsAre(256, 0xFF, 0xFE, 257));
  // Bytes of a broken character never merge with the text beside them, even where a merge exists.
  json["model"]["vocab"]
      [to_alphabet("\xC3"
                   "a")] = 258;
  json["model"]["merges"].push_back(Json::array({to_alphabet("\xC3"), "a"}));
  EXPECT_THAT(load(json).encode("\xC3"
                                "a"),
              ElementsAre(0xC3, 'a'));
  // The text after such a run gets no prefix space; the text before it does.
  json = minimal();
  json["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_THAT(load(json).encode("ab\xFF"
                                "ab"),
              ElementsAre(' ', 256, 0xFF, 256));
  // Normalisation leaves them alone.
  json["normalizer"] = {{"type", "NFC"}};
  EXPECT_THAT(load(json).encode("\xFF"
                                "e\u0301"),
              ElementsAre(0xFF, 0xC3, 0xA9));
}

TEST(BpeTokenizer, ReadsBothFormsOfMergesAndOldFiles) {
  Json json = minimal();
  EXPECT_THAT(load(json).encode("abcab"), ElementsAre(257, 256));
  json["model"]["merges"] = Json::array({Json::array({"a", "b"}), Json::array({"ab", "c"})});
  EXPECT_THAT(load(json).encode("abcab"), ElementsAre(257, 256));
  json["model"]["merges"] = {"#version: 0.2", "a b"};
  json["model"].erase("type");
  EXPECT_THAT(load(json).encode("abcab"), ElementsAre(256, 'c', 256));
}

TEST(BpeTokenizer, UnusedIdsHaveNoBytes) {
  Json json = minimal();
  json["model"]["vocab"]["abcabc"] = 300;
  const BpeTokenizer tokenizer = load(json);
  EXPECT_EQ(tokenizer.vocab_size(), 301);
  EXPECT_EQ(tokenizer.token_bytes(299), "");
  EXPECT_EQ(tokenizer.decode(std::vector<int32_t>{'a', 299, 'b'}), "ab");
}

TEST(BpeTokenizer, UnsupportedPartsAreNamed) {
  const auto error = [](const std::function<void(Json&)>& edit) {
    Json json = minimal();
    edit(json);
    return error_of([&] { load(json); });
  };
  EXPECT_EQ(
      error([](Json& j) {
        j["normalizer"] = {{"type", "Lowercase"}};
      }),
      "t.json: normalizer: the normalizer \"Lowercase\" is not supported; supported are null, "
      "NFC, NFD, NFKC, NFKD and Sequence");
  EXPECT_EQ(
      error([](Json& j) {
        j["pre_tokenizer"] = {{"type", "Metaspace"}};
      }),
      "t.json: pre_tokenizer: the pre_tokenizer \"Metaspace\" is not supported; supported are "
      "ByteLevel, Split, Digits and Sequence");
  EXPECT_THAT(error([](Json& j) { j["pre_tokenizer"] = nullptr; }), HasSubstr("is null"));
  EXPECT_THAT(error([](Json& j) {
                j["pre_tokenizer"] = {{"type", "Digits"}};
              }),
              HasSubstr("has no ByteLevel"));
  EXPECT_THAT(error([](Json& j) {
                j["pre_tokenizer"] = {
                    {"type", "Sequence"},
                    {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}};
              }),
              HasSubstr("pre_tokenizer[0]: ByteLevel is not the last step"));
  EXPECT_THAT(error([](Json& j) {
                j["pre_tokenizer"] = {
                    {"type", "Split"}, {"pattern", {{"Glob", "*"}}}, {"behavior", "Isolated"}};
              }),
              HasSubstr("a pattern must be one of"));
  EXPECT_THAT(error([](Json& j) {
                j["pre_tokenizer"] = {
                    {"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Merged"}};
              }),
              HasSubstr("\"behavior\" is \"Merged\"; it must be one of \"Isolated\""));
  EXPECT_THAT(error([](Json& j) {
                j["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("the post_processor \"BertProcessing\" is not supported"));
  EXPECT_THAT(error([](Json& j) {
                j["decoder"] = {{"type", "WordPiece"}};
              }),
              HasSubstr("the decoder \"WordPiece\" is not supported"));
  EXPECT_THAT(error([](Json& j) {
                j["truncation"] = {{"max_length", 3}};
              }),
              HasSubstr("\"truncation\" is an object"));
  EXPECT_THAT(error([](Json& j) {
                j["padding"] = {{"strategy", "BatchLongest"}};
              }),
              HasSubstr("\"padding\""));
  EXPECT_THAT(error([](Json& j) { j["version"] = "2.0"; }), HasSubstr("must be \"1.0\""));
  EXPECT_EQ(error([](Json& j) { j["model"]["type"] = "Unigram"; }),
            "t.json: model: \"type\" is \"Unigram\"; it must be \"BPE\"");
  EXPECT_THAT(error([](Json& j) { j["model"]["dropout"] = 0.1; }), HasSubstr("must not be random"));
  EXPECT_THAT(error([](Json& j) { j["model"]["byte_fallback"] = true; }),
              HasSubstr("only byte-level BPE"));
  EXPECT_THAT(error([](Json& j) { j["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("\"end_of_word_suffix\" is \"</w>\""));
  EXPECT_THAT(error([](Json& j) { j["model"]["unk_token"] = "<unk>"; }),
              HasSubstr("must be a token of the vocabulary"));
  EXPECT_THAT(error([](Json& j) { j["model"]["novelty"] = 1; }),
              HasSubstr("unknown key \"novelty\""));
  EXPECT_THAT(error([](Json& j) { j.erase("model"); }), HasSubstr("\"model\" is missing"));
}

TEST(BpeTokenizer, WrongVocabulariesAreRefused) {
  const auto error = [](const std::function<void(Json&)>& edit) {
    Json json = minimal();
    edit(json["model"]);
    return error_of([&] { load(json); });
  };
  EXPECT_THAT(error([](Json& m) { m["vocab"]["x y"] = 256; }), HasSubstr("id 256 is given to two"));
  EXPECT_THAT(error([](Json& m) { m["vocab"]["x y"] = -1; }), HasSubstr("\"x y\" is -1"));
  EXPECT_THAT(error([](Json& m) { m["vocab"]["x y"] = int64_t{1} << 40; }),
              HasSubstr("an integer in [0, 16777216]"));
  EXPECT_THAT(error([](Json& m) { m["merges"].push_back("b c"); }),
              HasSubstr("merge 2 needs token \"bc\", which vocab lacks"));
  EXPECT_THAT(error([](Json& m) { m["merges"].push_back("abc"); }),
              HasSubstr("merges holds \"abc\"; an entry must be"));
  EXPECT_THAT(error([](Json& m) { m["merges"].push_back("a b c"); }),
              HasSubstr("an entry must be"));
  EXPECT_THAT(error([](Json& m) { m["merges"].push_back({"a"}); }), HasSubstr("an entry must be"));
  EXPECT_THAT(error([](Json& m) { m["merges"].push_back(3); }), HasSubstr("an entry must be"));
  EXPECT_THAT(error_of([] { BpeTokenizer("{\n", "t.json"); }), StartsWith("t.json:2:1: not valid"));
}

TEST(BpeTokenizer, AddedTokensMustHaveTheIdsThatOthersGiveThem) {
  const auto added = [](int id, const char* content) {
    return Json{{"id", id}, {"content", content}, {"special", true}};
  };
  Json json = minimal();
  json["added_tokens"] = {added(258, "<x>"), added(97, "a"), added(259, "<y>")};
  EXPECT_THAT(load(json).encode("<y>ab<x>"), ElementsAre(259, 97, 98, 258));
  json["added_tokens"] = {added(300, "<x>")};
  EXPECT_THAT(
      error_of([&] { load(json); }),
      HasSubstr("added_tokens[0]: \"id\" is 300; it must be 258, as added tokens count on"));
  json["added_tokens"] = {added(98, "a")};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("must be 97, the id of this token"));
  json["added_tokens"] = {added(258, "<x>"), added(259, "<x>")};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("\"<x>\" is added twice"));
}

TEST(BpeTokenizer, TemplatesAreChecked) {
  Json json = minimal();
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  const Json bos = {{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}};
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {bos, text, bos}},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {'a', 'b'}}, {"tokens", {"a", "b"}}}}}}};
  EXPECT_THAT(load(json).encode("c", {.add_special_tokens = true}),
              ElementsAre('a', 'b', 'c', 'a', 'b'));
  EXPECT_THAT(load(json).encode("c"), ElementsAre('c'));
  json["post_processor"]["special_tokens"]["<s>"]["ids"] = {1000};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("id 1000 of \"<s>\" is outside"));
  json["post_processor"]["single"] = {bos};
  json["post_processor"]["special_tokens"]["<s>"]["ids"] = {1};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("single must hold"));
  json["post_processor"]["single"] = {text, text};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("holds the text twice"));
  json["post_processor"]["special_tokens"] = Json::object();
  json["post_processor"]["single"] = {bos, text};
  EXPECT_THAT(error_of([&] { load(json); }), HasSubstr("\"<s>\" is missing"));
}

TEST(BpeTokenizer, ConfigNamesBosAndEos) {
  const BpeTokenizer tokenizer =
      load(minimal(), R"({"bos_token": {"content": "ab"}, "eos_token": "\n", "other": 1})");
  EXPECT_EQ(tokenizer.bos_id(), 256);
  EXPECT_EQ(tokenizer.eos_id(), '\n');
  EXPECT_THAT(error_of([] { load(minimal(), R"({"eos_token": "</s>"})"); }),
              HasSubstr("t.json (tokenizer_config.json): \"eos_token\" is \"</s>\"; it must be a "
                        "token of tokenizer.json"));
}

TEST(BpeTokenizer, LosslessKnowsWhatChangesText) {
  EXPECT_TRUE(load(minimal()).is_lossless());
  const auto lossless = [](const std::function<void(Json&)>& edit) {
    Json json = minimal();
    edit(json);
    return load(json).is_lossless();
  };
  EXPECT_FALSE(lossless([](Json& j) { j["normalizer"] = {{"type", "NFC"}}; }));
  EXPECT_FALSE(lossless([](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = true; }));
  EXPECT_FALSE(lossless([](Json& j) { j["model"]["vocab"].erase("Z"); }));
  EXPECT_FALSE(lossless([](Json& j) {
    j["added_tokens"] = {{{"id", 258}, {"content", "<x>"}, {"special", true}, {"rstrip", true}}};
  }));
  EXPECT_FALSE(lossless([](Json& j) {
    j["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Removed"}},
          j["pre_tokenizer"]}}};
  }));
}

TEST(BpeTokenizer, ThreadsShareIt) {
  const auto tokenizer = load_tokenizer(folder_of("llama3"));
  const Json cases = read_json(folder_of("llama3") / "expected.json");
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (const Json& entry : cases) {
        wrong[t] += tokenizer->encode(entry["text"].get<std::string>()) !=
                            entry["ids"].get<std::vector<int32_t>>()
                        ? 1
                        : 0;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

}  // namespace
}  // namespace mdn
