#include "mdn/kernels/short_conv.h"

#include <algorithm>
#include <cstring>

#include "mdn/core/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/short_conv.cpp"
#include <hwy/foreach_target.h>

#include "mdn/kernels/cpu/elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {

// a = bias + sum_back taps[back] x[-back] for one vector of channels; `reach` is how many tokens
// before this one may be seen. taps [W, C], the current token's first; x points at the current
// token.
template <class D>
HWY_INLINE auto convolve(D d, const float* x, const float* taps, const float* bias, int64_t C,
                         int64_t reach, int64_t c) {
  auto a = hn::Mul(hn::LoadU(d, taps + c), hn::LoadU(d, x + c));
  if (bias) {
    a = hn::Add(a, hn::LoadU(d, bias + c));
  }
  for (int64_t back = 1; back <= reach; ++back) {
    a = hn::MulAdd(hn::LoadU(d, taps + back * C + c), hn::LoadU(d, x - back * C + c), a);
  }
  return a;
}

void short_conv_row(int64_t C, int64_t reach, const float* x, const float* taps, const float* bias,
                    float* y) {
  // y = silu(a)
  for_each_vector(C, [&](auto d, int64_t c) HWY_ATTR {
    const auto a = convolve(d, x, taps, bias, C, reach, c);
    hn::StoreU(hn::Mul(a, sigmoid(d, a)), d, y + c);
  });
}

// y = silu(a) of one token; the state [W-1, C] is moved on by it.
void short_conv_step_row(int64_t C, int64_t W, const float* x, const float* taps, float* state,
                         float* y) {
  for_each_vector(C, [&](auto d, int64_t c) HWY_ATTR {
    auto newer = hn::LoadU(d, x + c);
    auto a = hn::Mul(hn::LoadU(d, taps + c), newer);
    for (int64_t back = 1; back < W; ++back) {
      float* at = state + (W - 1 - back) * C + c;
      const auto older = hn::LoadU(d, at);
      a = hn::MulAdd(hn::LoadU(d, taps + back * C + c), older, a);
      hn::StoreU(newer, d, at);
      newer = older;
    }
    hn::StoreU(hn::Mul(a, sigmoid(d, a)), d, y + c);
  });
}

// d_a = d_y s (1 + a (1 - s)), s = sigmoid(a)
void short_conv_slope_row(int64_t C, int64_t reach, const float* x, const float* taps,
                          const float* bias, const float* d_y, float* d_a) {
  for_each_vector(C, [&](auto d, int64_t c) HWY_ATTR {
    const auto a = convolve(d, x, taps, bias, C, reach, c);
    const auto s = sigmoid(d, a), one = hn::Set(d, 1.0f);
    const auto slope = hn::Mul(s, hn::MulAdd(a, hn::Sub(one, s), one));
    hn::StoreU(hn::Mul(hn::LoadU(d, d_y + c), slope), d, d_a + c);
  });
}

// d_x[t] = sum_back taps[back] d_a[t + back] over the `reach` later tokens that see t
void short_conv_input_row(int64_t C, int64_t reach, const float* d_a, const float* taps,
                          float* d_x) {
  for_each_vector(C, [&](auto d, int64_t c) HWY_ATTR {
    auto sum = hn::Mul(hn::LoadU(d, taps + c), hn::LoadU(d, d_a + c));
    for (int64_t back = 1; back <= reach; ++back) {
      sum = hn::MulAdd(hn::LoadU(d, taps + back * C + c), hn::LoadU(d, d_a + back * C + c), sum);
    }
    hn::StoreU(sum, d, d_x + c);
  });
}

// d_taps[back] += d_a[t] x[t - back];  d_bias += d_a[t], unless null
void short_conv_taps_row(int64_t C, int64_t reach, const float* x, const float* d_a, float* d_taps,
                         float* d_bias) {
  for_each_vector(C, [&](auto d, int64_t c) HWY_ATTR {
    const auto g = hn::LoadU(d, d_a + c);
    if (d_bias) {
      hn::StoreU(hn::Add(hn::LoadU(d, d_bias + c), g), d, d_bias + c);
    }
    for (int64_t back = 0; back <= reach; ++back) {
      float* to = d_taps + back * C + c;
      hn::StoreU(hn::MulAdd(g, hn::LoadU(d, x - back * C + c), hn::LoadU(d, to)), d, to);
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {
namespace {

HWY_EXPORT(short_conv_row);
HWY_EXPORT(short_conv_step_row);
HWY_EXPORT(short_conv_slope_row);
HWY_EXPORT(short_conv_input_row);
HWY_EXPORT(short_conv_taps_row);

// Rows of a task: a fixed number, so that the weight's gradient does not depend on the threads.
constexpr int64_t kBlock = 128;

int64_t blocks_of(const ShortConvProblem& p) {
  return (p.B * p.T + kBlock - 1) / kBlock;
}

// The sequence that a row of [B T] lies in, as rows [begin, end). Asked with rising rows.
class SequenceOf {
 public:
  SequenceOf(const ShortConvProblem& p, int64_t row) : p_(p) {
    if (p.cu_seqlens) {
      const int64_t* after = std::upper_bound(p.cu_seqlens, p.cu_seqlens + p.N + 1, row);
      next_ = after - p.cu_seqlens;
    }
    move(row);
  }
  void move(int64_t row) {
    if (!p_.cu_seqlens) {
      begin_ = row / p_.T * p_.T;
      end_ = begin_ + p_.T;
      return;
    }
    while (next_ <= p_.N && p_.cu_seqlens[next_] <= row) {
      ++next_;
    }
    begin_ = p_.cu_seqlens[next_ - 1];
    end_ = next_ <= p_.N ? p_.cu_seqlens[next_] : begin_;
  }
  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }

 private:
  const ShortConvProblem& p_;
  int64_t next_ = 1, begin_ = 0, end_ = 0;
};

}  // namespace

void short_conv_taps(int64_t C, int64_t W, const float* weight, float* taps) {
  for (int64_t c = 0; c < C; ++c) {
    for (int64_t back = 0; back < W; ++back) {
      taps[back * C + c] = weight[c * W + W - 1 - back];
    }
  }
}

void short_conv_step(int64_t B, int64_t C, int64_t W, const float* x, const float* taps,
                     float* state, float* y) {
  for (int64_t b = 0; b < B; ++b) {
    HWY_DYNAMIC_DISPATCH(short_conv_step_row)
    (C, W, x + b * C, taps, state + b * (W - 1) * C, y + b * C);
  }
}

size_t short_conv_workspace(const ShortConvProblem& p) {
  const int64_t taps = p.W * p.C, sums = (p.W + 1) * p.C;
  const int64_t halo_rows = (kBlock + p.W - 1) * p.C;
  return static_cast<size_t>(taps + blocks_of(p) * sums + num_threads() * halo_rows) *
         sizeof(float);
}

void short_conv_forward(const ShortConvProblem& p, const float* x, const float* weight,
                        const float* bias, float* y, void* workspace) {
  float* taps = static_cast<float*>(workspace);
  short_conv_taps(p.C, p.W, weight, taps);
  const int64_t rows = p.B * p.T;
  parallel_for(blocks_of(p), [&](int64_t block, int) {
    const int64_t first = block * kBlock, last = std::min(first + kBlock, rows);
    SequenceOf sequence(p, first);
    for (int64_t row = first; row < last; ++row) {
      sequence.move(row);
      const int64_t reach = std::min(p.W - 1, row - sequence.begin());
      HWY_DYNAMIC_DISPATCH(short_conv_row)(p.C, reach, x + row * p.C, taps, bias, y + row * p.C);
    }
  });
}

void short_conv_backward(const ShortConvProblem& p, const float* x, const float* weight,
                         const float* bias, const float* d_y, float* d_x, float* d_weight,
                         float* d_bias, void* workspace) {
  float* taps = static_cast<float*>(workspace);
  const int64_t sums = (p.W + 1) * p.C;
  float* partial = taps + p.W * p.C;              // [blocks, W + 1, C]: of the taps, of the bias
  float* slopes = partial + blocks_of(p) * sums;  // [threads, kBlock + W-1, C]
  short_conv_taps(p.C, p.W, weight, taps);
  const int64_t rows = p.B * p.T;
  parallel_for(blocks_of(p), [&](int64_t block, int thread) {
    const int64_t first = block * kBlock, last = std::min(first + kBlock, rows);
    float* d_taps = partial + block * sums;
    float* d_offset = bias ? d_taps + p.W * p.C : nullptr;
    float* d_a = slopes + thread * (kBlock + p.W - 1) * p.C;
    std::memset(d_taps, 0, static_cast<size_t>(sums) * sizeof(float));
    // Rows after the block that see rows of it are computed here too.
    const int64_t halo = std::min(last + p.W - 1, rows);
    SequenceOf ahead(p, first);
    for (int64_t row = first; row < halo; ++row) {
      ahead.move(row);
      const int64_t reach = std::min(p.W - 1, row - ahead.begin());
      float* slope = d_a + (row - first) * p.C;
      HWY_DYNAMIC_DISPATCH(short_conv_slope_row)
      (p.C, reach, x + row * p.C, taps, bias, d_y + row * p.C, slope);
      if (row < last) {
        HWY_DYNAMIC_DISPATCH(short_conv_taps_row)
        (p.C, reach, x + row * p.C, slope, d_taps, d_offset);
      }
    }
    SequenceOf sequence(p, first);
    for (int64_t row = first; row < last; ++row) {
      sequence.move(row);
      const int64_t reach = std::min(p.W - 1, sequence.end() - 1 - row);
      HWY_DYNAMIC_DISPATCH(short_conv_input_row)
      (p.C, reach, d_a + (row - first) * p.C, taps, d_x + row * p.C);
    }
  });
  const auto over_blocks = [&](int64_t row, int64_t c) {
    float sum = 0;
    for (int64_t block = 0; block < blocks_of(p); ++block) {
      sum += partial[block * sums + row * p.C + c];
    }
    return sum;
  };
  for (int64_t c = 0; c < p.C; ++c) {
    for (int64_t w = 0; w < p.W; ++w) {
      d_weight[c * p.W + w] = over_blocks(p.W - 1 - w, c);
    }
    if (bias) {
      d_bias[c] = over_blocks(p.W, c);
    }
  }
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE
