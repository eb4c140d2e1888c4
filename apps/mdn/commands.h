// The subcommands of `mdn`: each adds itself to the program and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>

namespace mdn::app {

void add_data(CLI::App& program);
void add_synth(CLI::App& program);
void add_train(CLI::App& program);
void add_eval(CLI::App& program);
void add_generate(CLI::App& program);
void add_verify(CLI::App& program);
void add_info(CLI::App& program);
void add_inspect(CLI::App& program);

}  // namespace mdn::app
