// --device and --dtype, as every subcommand that runs a model has them.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <CLI/CLI.hpp>
#include <string>

namespace mdn::app {

struct DeviceOptions {
  std::string name = "cpu";
  std::string dtype = "float32";

  /// The device, after checking that this build and machine have it.
  c10::Device device() const;
  c10::ScalarType type() const;
};

void add_device_options(CLI::App& command, DeviceOptions& options);

}  // namespace mdn::app
