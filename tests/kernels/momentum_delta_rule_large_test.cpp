// Forward and backward past 2^31 elements on the CPU: every element of every result, against runs
// of a few rows. Takes 5 GiB and a minute or more, so it has the label `slow`.
//
// All batch rows hold the same numbers, so the inputs can be one block of rows mapped again and
// again. A row has 67,584 values, which does not divide 2^31 or 2^32: an offset that wraps would
// read and write other numbers.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "mdn/core/error.h"
#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {
namespace {

using kernels::MomentumDeltaRuleBackward;
using kernels::MomentumDeltaRuleForward;
using kernels::MomentumDeltaRuleProblem;

constexpr int64_t kBlockRows = 64;  // mapped at once: whole pages of every tensor
constexpr int64_t kBlocks = 500;
constexpr int64_t kTokens = 1056;  // of a row: 33 pages of bfloat16 values
constexpr int64_t kV = 64;

/// Address space, given back at the end.
class Region {
 public:
  explicit Region(size_t bytes) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    MDN_CHECK(memory_ != MAP_FAILED, "no {} bytes of address space", bytes);
  }
  /// `block` over and over.
  Region(const std::vector<unsigned char>& block, int64_t times)
      : Region(block.size() * static_cast<size_t>(times)) {
    const int file = memfd_create("rows", 0);
    MDN_CHECK(
        file >= 0 && write(file, block.data(), block.size()) == static_cast<ssize_t>(block.size()),
        "no memory file of {} bytes", block.size());
    for (int64_t i = 0; i < times; ++i) {
      void* at = static_cast<unsigned char*>(memory_) + static_cast<size_t>(i) * block.size();
      MDN_CHECK(mmap(at, block.size(), PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) == at,
                "mapping {} of {} failed", i, times);
    }
    close(file);
  }
  ~Region() { munmap(memory_, bytes_); }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  void* get() const { return memory_; }
  /// Whether it is `row` over and over, byte by byte.
  bool repeats(const std::vector<unsigned char>& row) const {
    for (size_t at = 0; at < bytes_; at += row.size()) {
      if (std::memcmp(static_cast<unsigned char*>(memory_) + at, row.data(), row.size()) != 0) {
        return false;
      }
    }
    return bytes_ % row.size() == 0;
  }

 private:
  size_t bytes_;
  void* memory_;
};

int64_t available_memory() {
  std::ifstream facts("/proc/meminfo");
  for (std::string name, unit; facts >> name;) {
    int64_t value = 0;
    facts >> value;
    std::getline(facts, unit);
    if (name == "MemAvailable:") {
      return value * 1024;
    }
  }
  return 0;
}

std::vector<unsigned char> repeated(const std::vector<unsigned char>& row, int64_t times) {
  std::vector<unsigned char> all;
  for (int64_t i = 0; i < times; ++i) {
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

TEST(MomentumDeltaRuleLarge, EveryElementPastTwoToTheThirtyFirst) {
  constexpr int64_t kNeeded = int64_t{8} << 30;
  if (available_memory() < kNeeded) {
    GTEST_SKIP() << "less than " << kNeeded << " bytes of memory are free";
  }
  const DType dtype = DType::kBFloat16;
  const int64_t B = kBlockRows * kBlocks;
  ASSERT_GT(B * kTokens * kV, int64_t{std::numeric_limits<int32_t>::max()} + kTokens * kV);
  const MomentumDeltaRuleData row({.name = "row", .T = kTokens, .K = 1, .V = kV, .states = false},
                                  dtype);
  // One row alone: what each must be.
  const Results alone = run_cpu(row, dtype);
  const auto expected = [&](const char* name, DType type) { return encode(at(alone, name), type); };

  const auto mapped = [&](const std::vector<double>& x, DType type) {
    return std::make_unique<Region>(repeated(encode(x, type), kBlockRows), kBlocks);
  };
  const auto q = mapped(row.q, dtype), k = mapped(row.k, dtype), v = mapped(row.v, dtype);
  const auto d_o = mapped(row.d_o, dtype);
  const DType gate = DType::kFloat32;
  const auto alpha = mapped(row.alpha, gate), mu = mapped(row.mu, gate);
  const auto eta = mapped(row.eta, gate), beta = mapped(row.beta, gate);

  MomentumDeltaRuleProblem p = row.problem(dtype);
  p.B = p.N = B;
  const auto sizes = kernels::cpu::sizes(p);
  const Region saved(sizes.saved);
  MomentumDeltaRuleForward forward;
  forward.problem = p;
  forward.inputs = {q->get(),   k->get(),    v->get(), alpha->get(), mu->get(),
                    eta->get(), beta->get(), nullptr,  nullptr,      nullptr};
  forward.saved = saved.get();
  {
    const Region o(static_cast<size_t>(B * kTokens * kV) * size_of(dtype));
    const Region workspace(sizes.forward_workspace);
    forward.o = o.get();
    forward.workspace = workspace.get();
    kernels::cpu::forward(forward);
    EXPECT_TRUE(o.repeats(expected("o", dtype)));
  }
  const auto rows = [&](int64_t columns, DType type) {
    return std::make_unique<Region>(static_cast<size_t>(B * kTokens * columns) * size_of(type));
  };
  const auto d_q = rows(1, dtype), d_k = rows(1, dtype), d_v = rows(kV, dtype);
  const auto d_alpha = rows(1, gate), d_mu = rows(1, gate), d_eta = rows(1, gate);
  const auto d_beta = rows(1, gate);
  const Region workspace(sizes.backward_workspace);
  MomentumDeltaRuleBackward backward;
  backward.problem = p;
  backward.inputs = forward.inputs;
  backward.saved = saved.get();
  backward.d_o = d_o->get();
  backward.d_q = d_q->get();
  backward.d_k = d_k->get();
  backward.d_v = d_v->get();
  backward.d_alpha = d_alpha->get();
  backward.d_mu = d_mu->get();
  backward.d_eta = d_eta->get();
  backward.d_beta = d_beta->get();
  backward.workspace = workspace.get();
  kernels::cpu::backward(backward);
  EXPECT_TRUE(d_v->repeats(expected("d_v", dtype)));
  EXPECT_TRUE(d_q->repeats(expected("d_q", dtype)));
  EXPECT_TRUE(d_k->repeats(expected("d_k", dtype)));
  EXPECT_TRUE(d_alpha->repeats(expected("d_alpha", gate)));
  EXPECT_TRUE(d_mu->repeats(expected("d_mu", gate)));
  EXPECT_TRUE(d_eta->repeats(expected("d_eta", gate)));
  EXPECT_TRUE(d_beta->repeats(expected("d_beta", gate)));
}

}  // namespace
}  // namespace mdn::test
