#include "mdn/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "mdn/core/error.h"
#include "mdn/tokenizer/regex_translation.h"
#include "mdn/tokenizer/utf8.h"

namespace mdn {
namespace {

// Far above what published patterns need, low enough that a hostile one ends: the machine stack of
// compiled code, the heap of the interpreter in KiB, and backtracking steps of one match.
constexpr size_t kJitStackBytes = size_t{64} << 20;
constexpr uint32_t kHeapLimitKiB = uint32_t{256} << 10;
constexpr uint32_t kMatchLimit = 10'000'000;

std::string pcre2_text(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

struct Regex::Code {
  pcre2_code* handle = nullptr;
  ~Code() { pcre2_code_free(handle); }
};

Regex::Regex(std::string_view pattern, const std::string& place)
    : place_(place), code_(std::make_unique<Code>()) {
  const std::string translated = translate_regex(pattern, place);
  int error = 0;
  PCRE2_SIZE offset = 0;
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  MDN_CHECK(context != nullptr, "out of memory");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  code_->handle = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                                context.get());
  MDN_CHECK(code_->handle != nullptr, "{}: the pattern \"{}\" does not compile: {}", place,
            pattern.size() <= 200 ? pattern : pattern.substr(0, 200), pcre2_text(error));
  // Without JIT (no support on a platform, or a pattern too large) the interpreter runs: slower,
  // and the same matches.
  pcre2_jit_compile(code_->handle, PCRE2_JIT_COMPLETE);
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

struct Regex::Matcher::State {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
  ~State() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

Regex::Matcher::Matcher(const Regex& regex, std::string_view text)
    : regex_(regex), text_(text), state_(std::make_unique<State>()) {
  state_->data = pcre2_match_data_create(1, nullptr);
  state_->context = pcre2_match_context_create(nullptr);
  MDN_CHECK(state_->data != nullptr && state_->context != nullptr, "out of memory");
  pcre2_set_match_limit(state_->context, kMatchLimit);
  pcre2_set_heap_limit(state_->context, kHeapLimitKiB);
}

Regex::Matcher::~Matcher() = default;

bool Regex::Matcher::next(size_t& begin, size_t& end) {
  while (from_ <= text_.size()) {
    int result =
        pcre2_match(regex_.code_->handle, reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(),
                    from_, PCRE2_NO_UTF_CHECK, state_->data, state_->context);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT && state_->stack == nullptr) {
      // The machine stack's 32 KiB do for published patterns; this one gets its own.
      state_->stack = pcre2_jit_stack_create(size_t{64} << 10, kJitStackBytes, nullptr);
      MDN_CHECK(state_->stack != nullptr, "out of memory");
      pcre2_jit_stack_assign(state_->context, nullptr, state_->stack);
      continue;
    }
    if (result == PCRE2_ERROR_NOMATCH) {
      from_ = text_.size() + 1;
      return false;
    }
    MDN_CHECK(result >= 0, "{}: the pattern failed on a text of {} bytes at byte {}: {}",
              regex_.place_, text_.size(), from_, pcre2_text(result));
    const PCRE2_SIZE* span = pcre2_get_ovector_pointer(state_->data);
    begin = span[0];
    end = span[1];
    if (begin == end && matched_ && end == last_end_) {
      from_ += from_ < text_.size() ? utf8_length(text_.substr(from_, 4)) : 1;
      continue;
    }
    from_ = end;
    last_end_ = end;
    matched_ = true;
    return true;
  }
  return false;
}

}  // namespace mdn
