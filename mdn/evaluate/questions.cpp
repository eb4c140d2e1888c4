#include "mdn/evaluate/questions.h"

#include <algorithm>
#include <array>

#include "mdn/core/error.h"
#include "mdn/data/input_stream.h"
#include "mdn/evaluate/text.h"

namespace mdn::evaluate {
namespace {

/// A field whose text may not be empty.
std::string filled(const JsonObject& line, std::string_view key) {
  std::string text = line.string(key);
  if (text.empty()) {
    line.fail(key, "a text that is not empty");
  }
  return text;
}

/// A label given as a number, as its digits or as a truth value.
int64_t label_number(const JsonObject& line, const char* key, int64_t lowest, int64_t highest) {
  const auto found = line.json().find(key);
  if (found != line.json().end() && found->is_boolean()) {
    return found->get<bool>() ? 1 : 0;
  }
  if (found == line.json().end() || !found->is_string()) {
    return line.integer(key, lowest, highest);
  }
  const std::string text = found->get<std::string>();
  for (int64_t label = lowest; label <= highest; ++label) {
    if (text == std::to_string(label)) {
      return label;
    }
  }
  line.fail(key, fmt::format("a label from {} to {}", lowest, highest));
}

/// One context for all choices, each after a space.
Question after_context(std::string context, std::vector<std::string> choices, int64_t gold) {
  Question question;
  for (const std::string& choice : choices) {
    question.requests.emplace_back(context, " " + choice);
  }
  question.choices = std::move(choices);
  question.gold = gold;
  return question;
}

// WikiHow's markup.
std::string clean_hellaswag(const std::string& text) {
  return replace_all(remove_brackets(replace_all(strip(text), " [title]", ". ")), "  ", " ");
}

Question read_hellaswag(const JsonObject& line) {
  std::vector<std::string> endings;
  for (const std::string& ending : line.strings("endings")) {
    endings.push_back(clean_hellaswag(ending));
  }
  if (endings.empty()) {
    line.fail("endings", "a list of texts");
  }
  const int64_t gold = label_number(line, "label", 0, static_cast<int64_t>(endings.size()) - 1);
  const std::string context = line.string("ctx_a") + " " + capitalize(line.string("ctx_b"));
  return after_context(clean_hellaswag(line.string("activity_label") + ": " + context),
                       std::move(endings), gold);
}

Question read_piqa(const JsonObject& line) {
  return after_context(fmt::format("Question: {}\nAnswer:", filled(line, "goal")),
                       {filled(line, "sol1"), filled(line, "sol2")},
                       label_number(line, "label", 0, 1));
}

/// Texts and names of choices, as the data sets' own files have them (a list of objects) or as
/// Hugging Face's copies (an object of two lists).
struct NamedChoices {
  std::vector<std::string> texts, names;
};

NamedChoices named_choices(const JsonObject& holder) {
  NamedChoices choices;
  if (holder.has("choices") && holder.json().at("choices").is_object()) {
    const JsonObject both = holder.object("choices");
    choices = {both.strings("text"), both.strings("label")};
  } else {
    const Json& list = holder.array("choices");
    for (size_t i = 0; i < list.size(); ++i) {
      const JsonObject choice(list[i], fmt::format("{}: choice {}", holder.place(), i));
      choices.texts.push_back(choice.string("text"));
      choices.names.push_back(choice.string("label"));
    }
  }
  if (choices.texts.empty() || choices.texts.size() != choices.names.size()) {
    holder.fail("choices", "choices that each have a text and a label");
  }
  return choices;
}

/// ARC and OpenBookQA: a stem, named choices, the right one's name.
Question read_named(const JsonObject& line, std::string_view stem_key, const char* format) {
  const bool nested = line.has("question") && line.json().at("question").is_object();
  std::string stem;
  NamedChoices choices;
  if (nested) {
    const JsonObject question = line.object("question");
    stem = filled(question, "stem");
    choices = named_choices(question);
  } else {
    stem = filled(line, stem_key);
    choices = named_choices(line);
  }
  const std::string key(strip_left(line.string("answerKey")));
  const auto found = std::find(choices.names.begin(), choices.names.end(), key);
  if (found == choices.names.end()) {
    line.fail("answerKey", fmt::format("one of {}", fmt::join(choices.names, ", ")));
  }
  return after_context(fmt::format(fmt::runtime(format), stem), std::move(choices.texts),
                       found - choices.names.begin());
}

Question read_arc(const JsonObject& line) {
  return read_named(line, "question", "Question: {}\nAnswer:");
}

Question read_openbookqa(const JsonObject& line) {
  return read_named(line, "question_stem", "{}");
}

// Partial evaluation: the choice fills the gap, and the text after the gap is scored.
Question read_winogrande(const JsonObject& line) {
  const std::string sentence = filled(line, "sentence");
  const size_t gap = sentence.find('_');
  if (gap == std::string::npos) {
    line.fail("sentence", "a sentence with a gap \"_\"");
  }
  const std::string rest = fmt::format(" {}", strip(std::string_view(sentence).substr(gap + 1)));
  Question question;
  for (const char* key : {"option1", "option2"}) {
    question.requests.emplace_back(sentence.substr(0, gap) + filled(line, key), rest);
    question.choices.push_back(question.requests.back().first);
  }
  question.gold = label_number(line, "answer", 1, 2) - 1;
  return question;
}

Question read_boolq(const JsonObject& line) {
  const char* label = line.has("label") ? "label" : "answer";
  return after_context(
      fmt::format("{}\nQuestion: {}?\nAnswer:", filled(line, "passage"), filled(line, "question")),
      {"no", "yes"}, label_number(line, label, 0, 1));
}

Question read_sciq(const JsonObject& line) {
  return after_context(fmt::format("{}\nQuestion: {}\nAnswer:", strip_left(line.string("support")),
                                   filled(line, "question")),
                       {filled(line, "distractor1"), filled(line, "distractor2"),
                        filled(line, "distractor3"), filled(line, "correct_answer")},
                       3);
}

Question read_lambada(const JsonObject& line) {
  const std::string text = filled(line, "text");
  const size_t space = text.rfind(' ');
  const size_t word = space == std::string::npos ? 0 : space + 1;
  if (word == text.size()) {
    line.fail("text", "a text that ends with a word, not with a space");
  }
  Question question;
  question.requests.emplace_back(text.substr(0, word == 0 ? 0 : space),
                                 fmt::format(" {}", text.substr(word)));
  return question;
}

std::string read_all(const std::filesystem::path& path, std::string& sha256) {
  data::InputStream stream(path);
  std::string text;
  std::array<char, 1 << 16> part;
  for (size_t got = part.size(); got == part.size();) {
    got = stream.read(part);
    text.append(part.data(), got);
  }
  sha256 = stream.file_sha256();
  return text;
}

/// Calls visit(line number from 1, line) until it returns false.
template <class Visit>
void each_line(std::string_view text, Visit visit) {
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!visit(number, line)) {
      return;
    }
  }
}

std::vector<std::string> read_labels(const std::filesystem::path& path) {
  std::string ignored;
  const std::string text = read_all(path, ignored);
  std::vector<std::string> labels;
  each_line(text, [&](int64_t, std::string_view line) {
    labels.emplace_back(strip(line));
    return true;
  });
  while (!labels.empty() && labels.back().empty()) {
    labels.pop_back();
  }
  return labels;
}

void check_choices(const Question& question) {
  for (size_t i = 0; i < question.choices.size(); ++i) {
    MDN_CHECK(!question.choices[i].empty(), "{}: choice {} is empty", question.place, i);
  }
}

}  // namespace

const std::vector<QuestionTask>& question_tasks() {
  static const std::vector<QuestionTask> tasks = {
      {"hellaswag", "activity_label, ctx_a, ctx_b, endings, label", "label", false, true,
       read_hellaswag},
      {"piqa", "goal, sol1, sol2, label", "label", false, true, read_piqa},
      {"arc_easy", "question, choices {text, label}, answerKey; or question {stem, choices}",
       nullptr, false, true, read_arc},
      {"arc_challenge", "as arc_easy", nullptr, false, true, read_arc},
      {"winogrande", "sentence, option1, option2, answer", "answer", false, false, read_winogrande},
      {"boolq", "passage, question, label; or answer instead of label", "label", false, false,
       read_boolq},
      {"sciq", "support, question, distractor1 to distractor3, correct_answer", nullptr, false,
       true, read_sciq},
      {"openbookqa", "question_stem, choices {text, label}, answerKey; or question {stem, choices}",
       nullptr, false, true, read_openbookqa},
      {"lambada", "text; its last word is asked for", nullptr, true, false, read_lambada},
  };
  return tasks;
}

QuestionFile read_questions(const QuestionTask& task, const std::filesystem::path& path,
                            const std::filesystem::path& labels_path, int64_t limit) {
  QuestionFile file;
  std::vector<std::string> labels;
  if (!labels_path.empty()) {
    MDN_CHECK(task.label_key != nullptr, "{}: takes no file of labels", task.name);
    labels = read_labels(labels_path);
  }
  const std::string text = read_all(path, file.sha256);
  each_line(text, [&](int64_t number, std::string_view line) {
    if (strip(line).empty()) {
      return true;
    }
    const std::string place = fmt::format("{}:{}", path.string(), number);
    Json json = parse_json(line, place);
    MDN_CHECK(json.is_object(), "{}: no JSON object; a line of {} has the fields {}", place,
              task.name, task.fields);
    if (!labels_path.empty()) {
      const size_t at = file.questions.size();
      MDN_CHECK(at < labels.size(), "{}: question {}, but {} has {} labels", place, at + 1,
                labels_path.string(), labels.size());
      json[task.label_key] = labels[at];
    }
    Question question;
    try {
      question = task.read(JsonObject(json, place));
    } catch (const Error& error) {
      MDN_THROW("{} (a line of {} has the fields {})", error.what(), task.name, task.fields);
    }
    question.place = place;
    check_choices(question);
    file.questions.push_back(std::move(question));
    return limit == 0 || static_cast<int64_t>(file.questions.size()) < limit;
  });
  MDN_CHECK(!file.questions.empty(), "{}: holds no questions", path.string());
  MDN_CHECK(labels_path.empty() || limit > 0 || labels.size() == file.questions.size(),
            "{}: {} labels for the {} questions of {}", labels_path.string(), labels.size(),
            file.questions.size(), path.string());
  return file;
}

std::vector<Metric> question_metrics(const QuestionTask& task, std::span<const Question> questions,
                                     std::span<const std::vector<Answer>> answers) {
  MDN_CHECK(questions.size() == answers.size(), "{} questions with {} answers", questions.size(),
            answers.size());
  if (task.last_word) {
    std::vector<double> log_likelihoods, right;
    for (const std::vector<Answer>& answer : answers) {
      log_likelihoods.push_back(answer.front().log_likelihood);
      right.push_back(answer.front().greedy ? 1 : 0);
    }
    return {mean_metric("acc", right), perplexity_metric("perplexity", log_likelihoods)};
  }
  std::vector<double> acc, acc_norm, acc_bytes;
  for (size_t i = 0; i < questions.size(); ++i) {
    const auto right = [&](auto length_of) {
      std::vector<double> scores;
      for (size_t k = 0; k < answers[i].size(); ++k) {
        scores.push_back(answers[i][k].log_likelihood /
                         static_cast<double>(length_of(questions[i].choices[k])));
      }
      return argmax(scores) == questions[i].gold ? 1.0 : 0.0;
    };
    acc.push_back(right([](const std::string&) { return 1; }));
    acc_norm.push_back(right(count_characters));
    acc_bytes.push_back(right([](const std::string& choice) { return choice.size(); }));
  }
  std::vector<Metric> metrics = {mean_metric("acc", acc)};
  if (task.normalised) {
    metrics.push_back(mean_metric("acc_norm", acc_norm));
    metrics.push_back(mean_metric("acc_bytes", acc_bytes));
  }
  return metrics;
}

}  // namespace mdn::evaluate
