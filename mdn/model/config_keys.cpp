#include "mdn/model/config_keys.h"

#include <limits>

#include "mdn/core/error.h"

namespace mdn::model {

const std::set<std::string>& ignored_keys() {
  static const std::set<std::string> keys = {"_attn_implementation",
                                             "_attn_implementation_autoset",
                                             "_commit_hash",
                                             "_name_or_path",
                                             "add_cross_attention",
                                             "architectures",
                                             "attn_mode",
                                             "auto_map",
                                             "bad_words_ids",
                                             "begin_suppress_tokens",
                                             "chunk_size_feed_forward",
                                             "chunk_size",
                                             "cross_attention_hidden_size",
                                             "decoder_start_token_id",
                                             "diversity_penalty",
                                             "do_sample",
                                             "dtype",
                                             "early_stopping",
                                             "encoder_no_repeat_ngram_size",
                                             "exponential_decay_length_penalty",
                                             "finetuning_task",
                                             "forced_bos_token_id",
                                             "forced_eos_token_id",
                                             "fuse_cross_entropy",
                                             "fuse_linear_cross_entropy",
                                             "fuse_norm",
                                             "fuse_swiglu",
                                             "id2label",
                                             "is_decoder",
                                             "is_encoder_decoder",
                                             "label2id",
                                             "length_penalty",
                                             "max_length",
                                             "max_position_embeddings",
                                             "min_length",
                                             "no_repeat_ngram_size",
                                             "num_beam_groups",
                                             "num_beams",
                                             "num_return_sequences",
                                             "output_attentions",
                                             "output_hidden_states",
                                             "output_scores",
                                             "prefix",
                                             "problem_type",
                                             "pruned_heads",
                                             "remove_invalid_values",
                                             "repetition_penalty",
                                             "return_dict",
                                             "return_dict_in_generate",
                                             "sep_token_id",
                                             "suppress_tokens",
                                             "task_specific_params",
                                             "temperature",
                                             "tf_legacy_loss",
                                             "tie_encoder_decoder",
                                             "tokenizer_class",
                                             "top_k",
                                             "top_p",
                                             "torch_dtype",
                                             "torchscript",
                                             "transformers_version",
                                             "typical_p",
                                             "use_bfloat16",
                                             "use_cache"};
  return keys;
}

std::optional<int64_t> Keys::token(const std::string& key, int64_t vocab_size) {
  if (!has(key)) {
    return std::nullopt;
  }
  const Json& value = object_.json().at(key);
  const Json& id = value.is_array() && !value.empty() ? value.front() : value;
  if (!id.is_number_integer()) {
    object_.fail(key, "a token id is an integer");
  }
  const int64_t n = id.get<int64_t>();
  return n >= 0 && n < vocab_size ? std::optional(n) : std::nullopt;
}

std::vector<JsonObject> Keys::objects(const std::string& key) {
  if (!has(key)) {
    return {};
  }
  const Json& value = object_.json().at(key);
  if (!value.is_array()) {
    return {object_.object(key)};
  }
  std::vector<JsonObject> list;
  for (size_t i = 0; i < value.size(); ++i) {
    list.emplace_back(value[i], fmt::format("{}: {}[{}]", place(), key, i));
  }
  return list;
}

std::pair<double, double> Keys::range(const std::string& key, std::pair<double, double> otherwise) {
  if (!has(key)) {
    return otherwise;
  }
  const Json& list = object_.json().at(key);
  const auto number = [&](const Json& value) {
    if (value.is_number()) {
      return value.get<double>();
    }
    if (value == Json{{"__float__", "Infinity"}}) {
      return std::numeric_limits<double>::infinity();
    }
    object_.fail(key, "allowed are two numbers, or {\"__float__\": \"Infinity\"}");
  };
  if (!list.is_array() || list.size() != 2 || number(list[0]) > number(list[1])) {
    object_.fail(key, "allowed are two numbers, the lower first");
  }
  return {number(list[0]), number(list[1])};
}

std::string Keys::either(const std::string& key, const std::string& alias) {
  const bool both = has(key) && has(alias);
  MDN_CHECK(!both || object_.json().at(key) == object_.json().at(alias),
            "{}: {} is {} and {} is {}; they are two names of one thing", place(), key,
            brief_json(object_.json().at(key)), alias, brief_json(object_.json().at(alias)));
  return has(alias) ? alias : key;
}

void Keys::only(const std::string& key, const Json& allowed) {
  if (has(key) && object_.json().at(key) != allowed) {
    object_.fail(key, fmt::format("only {} is supported", allowed.dump()));
  }
}

void Keys::finish() const {
  std::string unknown, known;
  for (const auto& item : object_.json().items()) {
    if (!seen_.count(item.key())) {
      unknown += fmt::format("{}'{}'", unknown.empty() ? "" : ", ", item.key());
    }
  }
  for (const std::string& key : seen_) {
    if (!ignored_keys().count(key)) {
      known += (known.empty() ? "" : ", ") + key;
    }
  }
  MDN_CHECK(unknown.empty(),
            "{}: unknown key {}: it might change the model, so it is not ignored; known: {}",
            place(), unknown, known);
}

}  // namespace mdn::model
