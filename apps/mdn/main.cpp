// mdn: train, check and talk to Momentum DeltaNet models.
#include <cstdio>

#include "apps/mdn/commands.h"
#include "mdn/core/error.h"

int main(int argc, char** argv) {
  CLI::App program{
      "Momentum DeltaNet: a linear-attention language model whose memory learns by gradient "
      "descent\n"
      "with momentum. `mdn SUBCOMMAND --help` explains a subcommand with an example."};
  program.require_subcommand(1);
  program.fallthrough(false);
  mdn::app::add_data(program);
  mdn::app::add_synth(program);
  mdn::app::add_train(program);
  mdn::app::add_eval(program);
  mdn::app::add_generate(program);
  mdn::app::add_verify(program);
  mdn::app::add_info(program);
  mdn::app::add_inspect(program);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error);
  } catch (const mdn::Error& error) {
    std::fprintf(stderr, "mdn: %s\n", error.what());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mdn: unexpected failure: %s\n", error.what());
    return 1;
  }
  return 0;
}
