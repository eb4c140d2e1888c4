// Accuracy of momentum_delta_rule on a GPU in bfloat16 against the float64 reference, as a table in
// Markdown: relative 2-norm errors in percent of the output and of every gradient, over floors of
// log mu, correlations of the keys and sizes of v.
//
//     accuracy_momentum_delta_rule_cuda [--part I/N]      (rows I, I + N, ... of the table)
//
// Gates: log mu uniform in [floor, 0] (floor -inf: mu = 0), eta uniform in [0, 2]. "Capped" are
// alpha and beta as the published layer makes them: with θ the angle of tangent eta f, f uniform in
// [0, 4], alpha = min(cos²θ, uniform in [0.9, 1]) and beta = sin²θ times a uniform number. "Free"
// are alpha uniform in [0.9, 1] and beta in [0, 1], with which slow momentum grows without bound:
// the largest state is shown; "free" rows with a number as mu have it uniform within half of its
// distance to 0 or 1, and initial states. Beside those stand the errors that were predicted before
// the kernels were written, by rounding the operands of a float64 program: of o before its own
// rounding, worst of d_q, d_k, d_v, and of the gates' gradients. Inputs are rounded to bfloat16
// before both sides read them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/kernels/cuda/momentum_delta_rule/dispatch.h"
#include "tests/support/momentum_delta_rule_cuda.h"

namespace mdn::bench {
namespace {

using test::MomentumDeltaRuleCase;
using test::MomentumDeltaRuleData;
using test::Results;

constexpr double kNoMomentum = -std::numeric_limits<double>::infinity();
constexpr double kFloors[] = {0, -0.1, -0.3, -0.5, -1, -2, kNoMomentum};

struct Row {
  int64_t T, K, V;
  bool capped;
  double cosine;
  double value_scale;
  double floor;
  double mu = 0;  // in place of the floor, where not 0
  double most_beta = 1;
  const char* predicted = "-";
};

std::vector<Row> make_rows() {
  std::vector<Row> rows;
  for (int64_t T : {512, 4096}) {
    for (double cosine : {0.0, 0.5, 0.95}) {
      for (double floor : kFloors) {
        rows.push_back({T, 128, 128, true, cosine, 1, floor});
      }
    }
  }
  for (double cosine : {0.0, 0.95}) {
    for (double floor : {-0.1, -2.0}) {
      rows.push_back({4096, 128, 128, true, cosine, 100, floor});
      rows.push_back({512, 128, 256, true, cosine, 1, floor});
      rows.push_back({512, 256, 512, true, cosine, 1, floor});
      rows.push_back({512, 64, 64, true, cosine, 1, floor});
    }
  }
  for (double cosine : {0.0, 0.5}) {
    for (double floor : {-0.5, -1.0, -2.0, kNoMomentum}) {
      rows.push_back({512, 128, 128, false, cosine, 1, floor});
    }
  }
  for (const auto& [cosine, mu, most_beta, predicted] :
       {std::tuple{0.0, 0.1, 1.0, "0.07, 0.23, 0.14"},
        {0.0, 0.5, 1.0, "0.07, 0.24, 0.15"},
        {0.0, 0.9, 1.0, "0.21, 0.57, 0.61"},
        {0.0, 0.99, 0.1, "0.14, 0.32, 0.34"},
        {0.5, 0.5, 1.0, "0.10, 0.50, 0.81"},
        {0.5, 0.9, 1.0, "0.59, 1.6, 1.6"},
        {0.5, 0.99, 0.1, "0.14, 0.61, 0.69"}}) {
    rows.push_back({512, 128, 128, false, cosine, 1, 0, mu, most_beta, predicted});
  }
  return rows;
}

MomentumDeltaRuleData make_data(const Row& row) {
  MomentumDeltaRuleCase c{.name = "accuracy", .T = row.T, .H = 2, .HV = 2, .K = row.K, .V = row.V};
  c.states = row.mu != 0;
  c.key_cosine = row.cosine;
  c.value_scale = row.value_scale;
  MomentumDeltaRuleData data(c, DType::kBFloat16);
  std::mt19937_64 engine(7);
  const auto uniform = [&](double low, double high) {
    return low + (high - low) * static_cast<double>(engine() >> 11) * 0x1p-53;
  };
  const auto single = [](double x) { return static_cast<double>(static_cast<float>(x)); };
  for (size_t i = 0; i < data.alpha.size(); ++i) {
    const double eta = uniform(0, 2);
    const double tangent = eta * uniform(0, 4);
    const double cap = row.capped ? 1 / (1 + tangent * tangent) : 1.0;
    data.alpha[i] = single(std::min(cap, uniform(0.9, 1)));
    data.beta[i] = single(uniform(0, row.most_beta) * (row.capped ? 1 - cap : 1.0));
    data.eta[i] = single(eta);
    const double distance = std::min(row.mu, 1 - row.mu);
    data.mu[i] = row.mu != 0 ? single(uniform(row.mu - distance / 2, row.mu + distance / 2))
                 : row.floor == kNoMomentum ? 0.0
                                            : single(std::exp(uniform(row.floor, 0)));
  }
  return data;
}

double largest(const std::vector<double>& x) {
  double most = 0;
  for (double value : x) {
    most = std::max(most, std::abs(value));
  }
  return most;
}

constexpr const char* kResults[] = {"o", "d_q", "d_k", "d_v", "d_mu", "d_eta", "d_beta", "d_alpha"};

void print_row(const Row& row) {
  const MomentumDeltaRuleData data = make_data(row);
  const auto choice =
      kernels::cuda::choose(data.problem(DType::kBFloat16), kernels::cuda::device_facts());
  const Results reference = run_reference(data);
  const Results results = run_cuda(data, DType::kBFloat16);
  const std::string mu =
      row.mu == 0
          ? fmt::format("floor {}", row.floor)
          : fmt::format("mu {}{}", row.mu,
                        row.most_beta < 1 ? fmt::format(", beta to {}", row.most_beta) : "");
  fmt::print("| {} | {},{} | {} | {} | {} | {} | {:.2g} |", row.T, row.K, row.V,
             row.capped ? "capped" : "free", row.cosine, row.value_scale, mu,
             std::max(largest(at(reference, "final_S")), largest(at(reference, "final_M"))));
  for (const char* name : kResults) {
    fmt::print(" {:.3g} |", 100 * test::relative_error(at(results, name), at(reference, name)));
  }
  fmt::print(" {} | {} |\n", row.predicted, describe(choice));
  std::fflush(stdout);
}

int run(int part, int parts) {
  const std::vector<Row> rows = make_rows();
  if (part == 0) {
    fmt::print("| T | K,V | gates | key cosine | v | log μ | largest final state |");
    for (const char* name : kResults) {
      fmt::print(" {} % |", name);
    }
    fmt::print(" predicted o, q k v, gates % | kernels |\n|");
    for (size_t i = 0; i < 9 + std::size(kResults); ++i) {
      fmt::print("---|");
    }
    fmt::print("\n");
  }
  for (size_t i = static_cast<size_t>(part); i < rows.size(); i += static_cast<size_t>(parts)) {
    print_row(rows[i]);
  }
  return 0;
}

}  // namespace
}  // namespace mdn::bench

int main(int argc, char** argv) {
  try {
    int part = 0;
    int parts = 1;
    if (argc == 3 && std::string(argv[1]) == "--part") {
      MDN_CHECK(std::sscanf(argv[2], "%d/%d", &part, &parts) == 2 && 0 <= part && part < parts,
                "--part {}: it must be I/N with 0 <= I < N", argv[2]);
    } else {
      MDN_CHECK(argc == 1, "usage: {} [--part I/N]", argv[0]);
    }
    return mdn::bench::run(part, parts);
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}
