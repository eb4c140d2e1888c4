#include "apps/mdn/device.h"

#include <ATen/Context.h>

#include "mdn/core/error.h"

namespace mdn::app {

c10::Device DeviceOptions::device() const {
  const c10::Device device(name);
#ifdef MDN_CUDA
  constexpr const char* kBuild = "this build has CUDA, but no GPU is usable here";
#else
  constexpr const char* kBuild = "this build is without CUDA: make build CUDA=on";
#endif
  MDN_CHECK(device.is_cpu() || at::hasCUDA(), "--device {}: {}; or use --device cpu", name, kBuild);
  return device;
}

c10::ScalarType DeviceOptions::type() const {
  if (dtype == "float64") {
    return c10::kDouble;
  }
  if (dtype == "bfloat16") {
    return c10::kBFloat16;
  }
  if (dtype == "float16") {
    return c10::kHalf;
  }
  return c10::kFloat;
}

void add_device_options(CLI::App& command, DeviceOptions& options) {
  command.add_option("--device", options.name, "where to run: cpu, cuda or cuda:N")
      ->check([](const std::string& text) {
        const bool ok = text == "cpu" || text == "cuda" ||
                        (text.starts_with("cuda:") && text.size() > 5 &&
                         text.find_first_not_of("0123456789", 5) == std::string::npos);
        return ok ? std::string() : "'" + text + "' is no device; use cpu, cuda or cuda:N";
      })
      ->capture_default_str();
  command.add_option("--dtype", options.dtype, "arithmetic: float32, bfloat16, float16 or float64")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16", "float64"}))
      ->capture_default_str();
}

}  // namespace mdn::app
