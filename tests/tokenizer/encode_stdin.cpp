// Encodes texts for comparison with other programs:
//
//   encode_stdin TOKENIZER [--add-special] [--ignore-special]
//
// Reads texts from standard input, each as its length (4 bytes, little-endian) and its bytes, and
// writes one line for each: the ids, separated by spaces, then " | " and what they decode to, in
// hexadecimal.
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "mdn/tokenizer/tokenizer.h"

namespace {

bool read_text(std::string& text) {
  uint32_t length = 0;
  if (std::fread(&length, 1, sizeof length, stdin) != sizeof length) {
    return false;
  }
  text.resize(length);
  return std::fread(text.data(), 1, length, stdin) == length;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: encode_stdin TOKENIZER [--add-special] [--ignore-special]\n");
    return 2;
  }
  try {
    mdn::EncodeOptions options;
    for (int i = 2; i < argc; ++i) {
      options.add_special_tokens |= std::strcmp(argv[i], "--add-special") == 0;
      options.ignore_special_tokens_in_text |= std::strcmp(argv[i], "--ignore-special") == 0;
    }
    const auto tokenizer = mdn::load_tokenizer(argv[1]);
    std::string text;
    while (read_text(text)) {
      const std::vector<int32_t> ids = tokenizer->encode(text, options);
      std::string line;
      for (const int32_t id : ids) {
        line += std::to_string(id) + " ";
      }
      line += "|";
      for (const char c : tokenizer->decode(ids)) {
        char hex[4];
        std::snprintf(hex, sizeof hex, "%02x", static_cast<unsigned char>(c));
        line += hex;
      }
      std::puts(line.c_str());
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "encode_stdin: %s\n", error.what());
    return 1;
  }
  return 0;
}
