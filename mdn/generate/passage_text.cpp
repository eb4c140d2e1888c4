#include "mdn/generate/passage_text.h"

#include "mdn/tokenizer/utf8.h"

namespace mdn::generate {

PassageText::PassageText(const Tokenizer& tokenizer, std::vector<std::string> stop_strings)
    : decoder_(tokenizer, true), stops_(std::move(stop_strings)) {}

std::string PassageText::show(std::string piece) {
  text_ += piece;
  return piece;
}

std::string PassageText::push(int32_t id) {
  return show(stops_.push(utf8_replace_invalid(decoder_.push(id))));
}

std::string PassageText::finish() {
  std::string last = stops_.push(utf8_replace_invalid(decoder_.finish()));
  return show(last + stops_.flush());
}

}  // namespace mdn::generate
