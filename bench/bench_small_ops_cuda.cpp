// The kernels around the momentum rule on a GPU, at the sizes of the published 400M models (8 x
// 4096 tokens, bfloat16): time and bytes, each operand read or written once, against the copy
// bandwidth measured in the same run (1 GiB) and against a copy of as many bytes timed alike, to
// which starting and ending cost as much. L2 is flushed before every timed call, medians of 30.
//
//     bench_small_ops_cuda
#include <fmt/format.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <vector>

#include "bench/device_inputs.h"
#include "mdn/kernels/cross_entropy.h"
#include "mdn/kernels/cuda/check.h"
#include "mdn/kernels/decay_gates.h"
#include "mdn/kernels/general_momentum_masks.h"
#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/rotary.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/kernels/swiglu.h"
#include "mdn/kernels/unit_lower_inverse.h"

namespace mdn::bench {
namespace {

using namespace kernels;

constexpr int64_t kTokens = 8 * 4096, kLength = 4096, kD = 1024, kInner = 2816;
constexpr int64_t kHeads = 6, kK = 128, kV = 256, kStride = 4672;  // of the packed projections
constexpr int64_t kVocab = 50257, kLogitRows = 4096, kLogitStride = 50304;
constexpr DType kType = DType::kBFloat16;

class Memory {
 public:
  void* bf16(int64_t count) {
    void* p = take(count * 2);
    fill_normal(p, count, kType, 1, ++seed_);
    return p;
  }
  float* floats(int64_t count) {
    void* p = take(count * 4);
    fill_normal(p, count, DType::kFloat32, 1, ++seed_);
    return static_cast<float*>(p);
  }
  void* take(int64_t bytes) {
    void* p = nullptr;
    MDN_CUDA_CHECK(cudaMalloc(&p, static_cast<size_t>(bytes)));
    taken_.emplace_back(p, &release);
    return p;
  }

 private:
  static void release(void* p) { cudaFree(p); }
  uint64_t seed_ = 0;
  std::vector<std::unique_ptr<void, void (*)(void*)>> taken_;
};

void* column(void* rows, int64_t c) {
  return static_cast<char*>(rows) + 2 * c;
}

class Table {
 public:
  explicit Table(double copy) : copy_(copy), from_(memory_.take(kMost)), to_(memory_.take(kMost)) {
    fmt::print("| kernel | MB | ms | GB/s | of copy | of a copy of its size |\n");
    fmt::print("|---|---|---|---|---|---|\n");
  }
  void row(const char* name, int64_t bytes, const std::function<void()>& body) const {
    const double ms = time_on_device(body, nullptr);
    const double rate = static_cast<double>(bytes) / (ms * 1e-3);
    const auto half = static_cast<size_t>(bytes) / 2;  // read, and as much written
    const double alike = time_on_device(
        [&] {
          MDN_CUDA_CHECK(cudaMemcpyAsync(to_, from_, half, cudaMemcpyDeviceToDevice, nullptr));
        },
        nullptr);
    fmt::print("| {} | {:.0f} | {:.4f} | {:.0f} | {:.0f}% | {:.0f}% |\n", name,
               static_cast<double>(bytes) * 1e-6, ms, rate * 1e-9, 100 * rate / copy_,
               100 * alike / ms);
    std::fflush(stdout);
  }

 private:
  static constexpr int64_t kMost = int64_t{1}
                                   << 30;  // of a copy: half of the largest kernel's bytes
  Memory memory_;
  double copy_;
  void *from_, *to_;
};

void norms(const Table& table) {
  Memory memory;
  const int64_t n = kTokens * kD;
  void *x = memory.bf16(n), *d_y = memory.bf16(n), *add = memory.bf16(n), *d_x = memory.bf16(n),
       *y = memory.bf16(n);
  float *w = memory.floats(kD), *d_w = memory.floats(kD);
  void* workspace =
      memory.take(static_cast<int64_t>(cuda::rms_norm_backward_workspace(kTokens * kHeads, kD)));
  const cuda::RmsNormForward forward{.rows = kTokens,
                                     .D = kD,
                                     .eps = 1e-6,
                                     .dtype = kType,
                                     .x = x,
                                     .gate = {},
                                     .weight = w,
                                     .y = y};
  table.row("rms_norm forward", 4 * n, [&] { cuda::rms_norm_forward(forward, nullptr); });
  const cuda::RmsNormBackward backward{.rows = kTokens,
                                       .D = kD,
                                       .eps = 1e-6,
                                       .dtype = kType,
                                       .x = x,
                                       .gate = {},
                                       .weight = w,
                                       .d_y = d_y,
                                       .add = add,
                                       .d_x = d_x,
                                       .y = y,
                                       .d_weight = d_w,
                                       .workspace = workspace};
  table.row("rms_norm backward, residual added, y again", 10 * n,
            [&] { cuda::rms_norm_backward(backward, nullptr); });

  const int64_t rows = kTokens * kHeads, m = rows * kV;
  void *projected = memory.bf16(kTokens * kStride), *d_projected = memory.bf16(kTokens * kStride);
  void *o = memory.bf16(m), *d_z = memory.bf16(m), *d_o = memory.bf16(m), *z = memory.bf16(m);
  const cuda::RmsNormGate gate{.data = column(projected, 3072), .heads = kHeads, .stride = kStride};
  const cuda::RmsNormForward gated{.rows = rows,
                                   .D = kV,
                                   .eps = 1e-6,
                                   .dtype = kType,
                                   .x = o,
                                   .gate = gate,
                                   .weight = w,
                                   .y = z};
  table.row("gated rms_norm forward", 6 * m, [&] { cuda::rms_norm_forward(gated, nullptr); });
  const cuda::RmsNormBackward gated_backward{.rows = rows,
                                             .D = kV,
                                             .eps = 1e-6,
                                             .dtype = kType,
                                             .x = o,
                                             .gate = gate,
                                             .weight = w,
                                             .d_y = d_z,
                                             .add = nullptr,
                                             .d_x = d_o,
                                             .d_gate = column(d_projected, 3072),
                                             .d_gate_stride = kStride,
                                             .y = z,
                                             .d_weight = d_w,
                                             .workspace = workspace};
  table.row("gated rms_norm backward, y again", 12 * m,
            [&] { cuda::rms_norm_backward(gated_backward, nullptr); });
}

void swiglu(const Table& table) {
  Memory memory;
  const int64_t n = kTokens * kInner;
  void *ab = memory.bf16(2 * n), *d_ab = memory.bf16(2 * n), *d_y = memory.bf16(n),
       *y = memory.bf16(n);
  const cuda::SwigluForward forward{.rows = kTokens,
                                    .columns = kInner,
                                    .dtype = kType,
                                    .a = ab,
                                    .b = column(ab, kInner),
                                    .stride = 2 * kInner,
                                    .y = y};
  table.row("swiglu forward", 6 * n, [&] { cuda::swiglu_forward(forward, nullptr); });
  const cuda::SwigluBackward backward{.rows = kTokens,
                                      .columns = kInner,
                                      .dtype = kType,
                                      .a = ab,
                                      .b = column(ab, kInner),
                                      .stride = 2 * kInner,
                                      .d_y = d_y,
                                      .d_a = d_ab,
                                      .d_b = column(d_ab, kInner),
                                      .d_stride = 2 * kInner,
                                      .y = y};
  table.row("swiglu backward, y again", 12 * n, [&] { cuda::swiglu_backward(backward, nullptr); });
}

void convolutions(const Table& table) {
  Memory memory;
  void *projected = memory.bf16(kTokens * kStride), *d_projected = memory.bf16(kTokens * kStride);
  for (const auto& [name, C, corrected] :
       {std::tuple("of v", kHeads * kV, false), std::tuple("of q, corrected", kHeads * kK, true)}) {
    const ShortConvProblem p{.B = kTokens / kLength, .T = kLength, .C = C, .W = 4};
    const int64_t n = kTokens * C;
    void *y = memory.bf16(n), *d_y = memory.bf16(n), *other = memory.bf16(n);
    float *w = memory.floats(C * 4), *d_w = memory.floats(C * 4), *scale = memory.floats(kHeads),
          *d_scale = memory.floats(kHeads);
    void* workspace = memory.take(static_cast<int64_t>(cuda::short_conv_backward_workspace(p)));
    const ShortConvCorrection correction =
        corrected ? ShortConvCorrection{.minus = other, .log_scale = scale, .channels = kK}
                  : ShortConvCorrection{};
    const cuda::ShortConvForward forward{.problem = p,
                                         .dtype = kType,
                                         .x = projected,
                                         .x_stride = kStride,
                                         .weight = w,
                                         .y = y,
                                         .correction = correction};
    table.row(fmt::format("short_conv forward {}", name).c_str(), (corrected ? 6 : 4) * n,
              [&] { cuda::short_conv_forward(forward, nullptr); });
    const cuda::ShortConvBackward backward{.problem = p,
                                           .dtype = kType,
                                           .x = projected,
                                           .x_stride = kStride,
                                           .weight = w,
                                           .d_y = d_y,
                                           .d_x = d_projected,
                                           .d_x_stride = kStride,
                                           .d_weight = d_w,
                                           .correction = correction,
                                           .d_log_scale = d_scale,
                                           .workspace = workspace};
    table.row(fmt::format("short_conv backward {}", name).c_str(), (corrected ? 8 : 6) * n,
              [&] { cuda::short_conv_backward(backward, nullptr); });
  }
}

void gates(const Table& table) {
  Memory memory;
  void *projected = memory.bf16(kTokens * kStride), *d_projected = memory.bf16(kTokens * kStride);
  const int64_t n = kTokens * kHeads;
  float* y[4];
  for (float*& one : y) {
    one = memory.floats(n);
  }
  const MomentumGatesProblem p{
      .tokens = kTokens, .H = kHeads, .HV = kHeads, .dtype = kType, .tau = 32, .min_log_mu = -2};
  const float* parameters = memory.floats(kHeads);
  const MomentumGatesParameters small{parameters, parameters, parameters, parameters, parameters};
  const MomentumGatesProjections x{column(projected, 4608), column(projected, 4614),
                                   column(projected, 4620), column(projected, 4626), kStride};
  const cuda::MomentumGatesForward forward{p, small, x, y[0], y[1], y[2], y[3]};
  table.row("momentum_gates forward", 24 * n,
            [&] { cuda::momentum_gates_forward(forward, nullptr); });
  const cuda::MomentumGatesBackward backward{
      p,
      small,
      x,
      y[0],
      y[1],
      y[2],
      y[3],
      column(d_projected, 4608),
      column(d_projected, 4614),
      column(d_projected, 4620),
      column(d_projected, 4626),
      kStride,
      memory.floats(5 * kHeads),
      memory.take(static_cast<int64_t>(cuda::momentum_gates_backward_workspace(p)))};
  table.row("momentum_gates backward", 32 * n,
            [&] { cuda::momentum_gates_backward(backward, nullptr); });
}

void losses(const Table& table) {
  Memory memory;
  auto* targets = static_cast<int64_t*>(memory.take(kLogitRows * 8));
  MDN_CUDA_CHECK(cudaMemset(targets, 0, kLogitRows * 8));
  cuda::CrossEntropy call{.rows = kLogitRows,
                          .vocab = kVocab,
                          .stride = kLogitStride,
                          .dtype = kType,
                          .logits = memory.bf16(kLogitRows * kLogitStride),
                          .targets = targets,
                          .losses = memory.floats(kLogitRows)};
  table.row("cross_entropy, loss alone, 4096 x 50257", 2 * kLogitRows * kLogitStride,
            [&] { cuda::cross_entropy(call, nullptr); });
  call.gradient = true;
  table.row("cross_entropy with gradient", 4 * kLogitRows * kLogitStride,
            [&] { cuda::cross_entropy(call, nullptr); });
}

/// Of the other architectures: step sizes and decays of Mamba2 (32 heads), the rotation of
/// attention (8 heads of 128), masks and inverses of the general momentum rule (a chunk of 64
/// tokens a head).
void others(const Table& table) {
  Memory memory;
  constexpr int64_t kManyHeads = 32, kRowStride = 4416, kAttentionHeads = 8, kHeadDim = 128;
  const int64_t n = kTokens * kManyHeads;
  cuda::DecayGatesProblem p{.tokens = kTokens,
                            .HV = kManyHeads,
                            .dtype = kType,
                            .high = 1e9,
                            .A_log = memory.floats(kManyHeads),
                            .dt_bias = memory.floats(kManyHeads),
                            .a = memory.bf16(kTokens * kRowStride),
                            .a_stride = kRowStride};
  float *alpha = memory.floats(n), *dt = memory.floats(n);
  table.row("decay_gates forward", 10 * n,
            [&] { cuda::decay_gates_forward({.problem = p, .alpha = alpha, .dt = dt}, nullptr); });
  const cuda::DecayGatesBackward backward{
      .problem = p,
      .d_alpha = alpha,
      .d_dt = dt,
      .d_a = memory.bf16(kTokens * kRowStride),
      .d_a_stride = kRowStride,
      .d_parameters = memory.floats(2 * kManyHeads),
      .workspace = memory.take(static_cast<int64_t>(cuda::decay_gates_backward_workspace(p)))};
  table.row("decay_gates backward", 12 * n, [&] { cuda::decay_gates_backward(backward, nullptr); });

  const int64_t rotated = kTokens * kAttentionHeads * kHeadDim;
  auto* positions = static_cast<int64_t*>(memory.take(kLength * 8));
  MDN_CUDA_CHECK(cudaMemset(positions, 0, kLength * 8));
  const cuda::Rotary rotary{.rows = kTokens / kLength,
                            .T = kLength,
                            .heads = kAttentionHeads,
                            .d = kHeadDim,
                            .dtype = kType,
                            .positions = positions,
                            .x = memory.bf16(rotated),
                            .y = memory.bf16(rotated)};
  table.row("rotary, either pass", 4 * rotated, [&] { cuda::rotary(rotary, nullptr); });

  constexpr int64_t C = cuda::kMaskTokens, kChunks = kTokens / C * kHeads;
  constexpr int64_t kMasks = 2 * C * C + 3 * 2 * C + 3;  // floats of a chunk
  const float* coefficients = memory.floats(cuda::kMaskCoefficients * kChunks * C);
  float *G = memory.floats(kChunks * C * C), *H = memory.floats(kChunks * C * C),
        *columns[3] = {memory.floats(kChunks * C * 2), memory.floats(kChunks * C * 2),
                       memory.floats(kChunks * C * 2)},
        *ends = memory.floats(kChunks * 3);
  table.row("general_momentum_masks forward", 4 * kChunks * (cuda::kMaskCoefficients * C + kMasks),
            [&] {
              cuda::general_momentum_masks_forward(
                  {kChunks, coefficients, G, H, columns[0], columns[1], columns[2], ends}, nullptr);
            });
  float* d_coefficients = memory.floats(cuda::kMaskCoefficients * kChunks * C);
  table.row("general_momentum_masks backward",
            4 * kChunks * (2 * cuda::kMaskCoefficients * C + kMasks), [&] {
              cuda::general_momentum_masks_backward({kChunks, coefficients, G, H, columns[0],
                                                     columns[1], columns[2], ends, d_coefficients},
                                                    nullptr);
            });
  table.row("unit_lower_inverse", 8 * kChunks * C * C, [&] {
    cuda::unit_lower_inverse({kChunks, G, H}, nullptr);
  });
}

}  // namespace
}  // namespace mdn::bench

int main() {
  using namespace mdn::bench;
  try {
    const double copy = measure_copy(nullptr);
    fmt::print("- device: {}\n- copy bandwidth of this run: {:.3f} TB/s (read + written)\n\n",
               describe_device(), copy * 1e-12);
    const Table table(copy);
    norms(table);
    swiglu(table);
    convolutions(table);
    gates(table);
    losses(table);
    others(table);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_small_ops_cuda: {}\n", error.what());
    return 1;
  }
}
