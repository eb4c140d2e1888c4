#include "mdn/train/metrics.h"

#include <string>
#include <string_view>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn::train {
namespace {

// Calls visit(line without its end, parsed object) for every complete line.
template <class Visit>
void for_each_line(const std::filesystem::path& path, const std::string& text, Visit visit) {
  size_t start = 0;
  for (int64_t number = 1; start < text.size(); ++number) {
    const size_t end = text.find('\n', start);
    if (end == std::string::npos) {
      return;  // unfinished: its writer was killed
    }
    const std::string_view line = std::string_view(text).substr(start, end - start);
    const std::string place = fmt::format("{}:{}", path.string(), number);
    const Json json = parse_json(line, place);
    visit(line, JsonObject(json, place));
    start = end + 1;
  }
}

}  // namespace

void truncate_metrics(const std::filesystem::path& path, int64_t last_step) {
  if (!std::filesystem::exists(path)) {
    return;
  }
  const std::string text = read_file(path);
  std::string kept;
  for_each_line(path, text, [&](std::string_view line, const JsonObject& json) {
    if (json.integer("step") <= last_step) {
      kept.append(line).append("\n");
    }
  });
  if (kept.size() != text.size()) {
    write_file_atomically(path, kept);
  }
}

LossCurves read_loss_curves(const std::filesystem::path& path) {
  LossCurves curves;
  for_each_line(path, read_file(path), [&](std::string_view, const JsonObject& json) {
    const std::string kind = json.string("kind");
    if ((kind == "train" || kind == "eval") && json.has("loss")) {
      (kind == "train" ? curves.train : curves.held_out)
          .push_back({json.integer("step"), json.real("seconds"), json.real("loss")});
    }
  });
  return curves;
}

}  // namespace mdn::train
