// mdn verify: compare a model with a golden file.
#include "mdn/model/verify.h"

#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>

#include "apps/mdn/commands.h"
#include "apps/mdn/device.h"
#include "mdn/core/error.h"

namespace mdn::app {
namespace {

struct VerifyOptions {
  std::string folder;
  DeviceOptions device;
  std::optional<double> logits, gradients;  // absent: the dtype's default
  bool all = false;
};

void run_verify(const VerifyOptions& options) {
  const at::ScalarType type = options.device.type();
  const model::GivenTolerances given{options.logits, options.gradients};
  const auto entries = model::verify(options.folder, type, options.device.device(), given);
  fmt::print("{}  {} on {}\n", options.folder, options.device.dtype, options.device.name);
  size_t bad = 0, hidden = 0, shown_gradients = 0;
  constexpr size_t kShown = 8;  // gradients shown unless --all
  for (const model::VerifyEntry& entry : entries) {
    bad += entry.ok() ? 0 : 1;
    const bool gradient = entry.name.starts_with("grad.");
    if (gradient && entry.ok() && !options.all && shown_gradients >= kShown) {
      ++hidden;
      continue;
    }
    shown_gradients += gradient ? 1 : 0;
    fmt::print("  {}  {:.2e}  (allowed {:.0e})  {}\n", entry.ok() ? "ok  " : "FAIL", entry.error,
               entry.allowed, entry.name);
  }
  if (hidden > 0) {
    fmt::print("  ok    {} more gradients with smaller errors (--all lists them)\n", hidden);
  }
  MDN_CHECK(bad == 0, "verify: {} of {} comparisons with {} are above tolerance", bad,
            entries.size(), options.folder);
}

}  // namespace

void add_verify(CLI::App& program) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command = program.add_subcommand(
      "verify",
      "Compare a model with a golden file: relative 2-norm errors of the logits, the loss, the\n"
      "prefill + decode logits and every parameter's gradient, worst first. Exits 1 above "
      "tolerance.");
  command
      ->add_option("DIR", options->folder,
                   "folder with config.json, weights.safetensors and golden.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory);
  add_device_options(*command, options->device);
  command->add_option("--tolerance", options->logits, "allowed error of logits and loss")
      ->check(CLI::PositiveNumber);
  command->add_option("--gradient-tolerance", options->gradients, "allowed error of gradients")
      ->check(CLI::PositiveNumber);
  command->add_flag("--all", options->all, "list every gradient");
  command->footer("Example: mdn verify tests/data/goldens/mdn");
  command->callback([options] { run_verify(*options); });
}

}  // namespace mdn::app
