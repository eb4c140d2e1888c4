// mdn: train, check and talk to Momentum DeltaNet models.
#include <cstdio>
#include <new>
#include <string>

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
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();  // a subcommand has said why it ends like this
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) {
      return program.exit(error);  // --help
    }
    const auto used = program.get_subcommands();
    std::fprintf(stderr, "mdn: %s; `mdn %s--help` explains\n", error.what(),
                 used.empty() ? "" : (used.front()->get_name() + " ").c_str());
    return 1;
  } catch (const mdn::Error& error) {
    std::fprintf(stderr, "mdn: %s\n", error.what());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "mdn: out of memory\n");
    return 1;
  } catch (const std::exception& error) {
    const std::string what = error.what();  // libtorch's goes on with a trace of its calls
    std::fprintf(stderr, "mdn: unexpected failure: %s\n", what.substr(0, what.find('\n')).c_str());
    return 1;
  }
  return 0;
}
