// Between the projections of a momentum DeltaNet block and its last product, on CUDA: the calls of
// the kernels on columns of the packed projections. Nothing is recorded;
// residual_momentum_deltanet.cpp makes a node of the graph of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/ops/momentum_gates.h"
#include "mdn/ops/residual_momentum_deltanet.h"

namespace mdn::ops {

class MomentumBlock {
 public:
  /// The weights in the order in which autograd sees them.
  enum Weight {
    kNorm,
    kQ,
    kK,
    kV,
    kG,
    kA,
    kB,
    kM,
    kE,
    kQConv,
    kKConv,
    kVConv,
    kALog,
    kMuLog,
    kLogFactor,
    kDtBias,
    kMuBias,
    kDLog,
    kONorm,
    kOProj,
    kWeights
  };
  static constexpr int kProjections = 8;  // kQ to kE: the packed ones, in their columns' order

  /// A weight that is not there is of no elements: autograd asks each for its device.
  static std::vector<at::Tensor> list_of(const ResidualMomentumDeltaNet& weights);

  /// Which columns of the packed projections are whose.
  struct Columns {
    int64_t q, k, v, g, a, b, m, e, used, all;

    explicit Columns(const ResidualMomentumDeltaNetOptions& options);
  };

  /// `cu_seqlens` on the device, or undefined; kernels are queued on `stream`, which must outlive
  /// this.
  MomentumBlock(const ResidualMomentumDeltaNetOptions& options, const at::Tensor& x,
                std::vector<at::Tensor> weights, at::Tensor cu_seqlens, void* stream);

  const Columns& columns() const { return columns_; }
  int64_t rows() const { return B_ * T_; }
  const at::Tensor& weight(Weight i) const { return weights_[i]; }
  const at::Tensor& norm() const { return floats_[kNorm]; }  // float32

  /// The operator's inputs.
  struct Mixed {
    at::Tensor q, k, v;
  };
  Mixed mix(const at::Tensor& projected) const;
  MomentumGates gates(const at::Tensor& projected) const;
  /// What the last product reads, [rows, HV V], of the operator's output.
  at::Tensor gated_norm(const at::Tensor& projected, const at::Tensor& y) const;

  /// The gradients of the above. Each writes its columns of d_projected, and its weights'
  /// gradients, float32, into `d`, which has kWeights entries.
  struct NormAgain {
    at::Tensor d_y, z;  // z: gated_norm once more
  };
  NormAgain gated_norm_backward(const at::Tensor& projected, const at::Tensor& y,
                                const at::Tensor& d_z, const at::Tensor& d_projected,
                                std::vector<at::Tensor>& d) const;
  void mix_backward(const at::Tensor& projected, const Mixed& d_mixed,
                    const at::Tensor& d_projected, std::vector<at::Tensor>& d) const;
  void gates_backward(const at::Tensor& projected, const MomentumGates& d_gates,
                      const at::Tensor& d_projected, std::vector<at::Tensor>& d) const;

 private:
  bool corrects() const { return weights_[kDLog].numel() > 0; }
  const float* numbers(Weight i) const { return floats_[i].const_data_ptr<float>(); }
  float* new_gradient(Weight i, std::vector<at::Tensor>& d) const;
  kernels::ShortConvProblem convolution(int64_t channels) const;
  kernels::MomentumGatesProblem gates_problem() const;
  kernels::MomentumGatesParameters gate_parameters() const;
  kernels::MomentumGatesProjections gate_projections(const at::Tensor& projected) const;
  kernels::cuda::RmsNormGate output_gate(const at::Tensor& projected) const;
  at::Tensor convolve(const at::Tensor& projected, int64_t column, Weight conv, int64_t heads,
                      int64_t channels, const at::Tensor& minus) const;
  void convolve_backward(const at::Tensor& projected, const at::Tensor& d_projected, int64_t column,
                         Weight conv, const at::Tensor& d_y, const at::Tensor& minus,
                         std::vector<at::Tensor>& d) const;

  ResidualMomentumDeltaNetOptions options_;
  int64_t B_, T_;
  Columns columns_;
  DType dtype_;
  std::vector<at::Tensor> weights_;  // as given
  at::Tensor cu_seqlens_;
  std::vector<at::Tensor> floats_;  // of the weights: those that kernels read as float32
  void* stream_;
};

}  // namespace mdn::ops
