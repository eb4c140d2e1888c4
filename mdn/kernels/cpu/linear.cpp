#include "mdn/kernels/linear.h"

#include <algorithm>

#include "mdn/core/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/linear.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Df = hn::CappedTag<float, 16>;
using Vf = hn::Vec<Df>;
constexpr int64_t kLanes = hn::MaxLanes(Df());
constexpr int kSums = 2;  // vectors of partial sums of one output

// kOut outputs of kRows rows: eight sums at least cover the latency of a multiply-add. The order of
// each output's sum is the same for every kOut and kRows.
template <int kOut, int kRows>
HWY_INLINE void tile(int64_t in, const float* x, const LinearPart& part, int64_t o, int64_t b,
                     bool add) {
  const float* weight = part.weight + o * in;
  const Df d;
  const hn::CappedTag<float, 1> single;
  Vf sums[kOut][kRows][kSums];
  for (auto& of_output : sums) {
    for (auto& of_row : of_output) {
      of_row[0] = of_row[1] = hn::Zero(d);
    }
  }
  int64_t i = 0;
  for (; i + kSums * kLanes <= in; i += kSums * kLanes) {
    for (int s = 0; s < kSums; ++s) {
      const int64_t at = i + s * kLanes;
      Vf xs[kRows];
      for (int r = 0; r < kRows; ++r) {
        xs[r] = hn::LoadU(d, x + r * in + at);
      }
      for (int j = 0; j < kOut; ++j) {
        const Vf w = hn::LoadU(d, weight + j * in + at);
        for (int r = 0; r < kRows; ++r) {
          sums[j][r][s] = hn::MulAdd(w, xs[r], sums[j][r][s]);
        }
      }
    }
  }
  for (int j = 0; j < kOut; ++j) {
    for (int r = 0; r < kRows; ++r) {
      float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sums[j][r][0], sums[j][r][1])));
      for (int64_t rest = i; rest < in; ++rest) {
        // explicit, so that no instance of this template rounds otherwise
        sum = hn::GetLane(hn::MulAdd(hn::Set(single, weight[j * in + rest]),
                                     hn::Set(single, x[r * in + rest]), hn::Set(single, sum)));
      }
      if (part.bias) {
        sum += part.bias[o + j];
      }
      float& y = part.y[(b + r) * part.out + o + j];
      y = add ? y + sum : sum;
    }
  }
}

template <int kRows>
void rows_of_block(int64_t in, const float* x, const LinearPart& part, int64_t begin, int64_t end,
                   int64_t b, bool add) {
  constexpr int kOut = kRows == 1 ? 4 : 2;
  int64_t o = begin;
  for (; o + kOut <= end; o += kOut) {
    tile<kOut, kRows>(in, x + b * in, part, o, b, add);
  }
  for (; o < end; ++o) {
    tile<1, kRows>(in, x + b * in, part, o, b, add);
  }
}

// Outputs [begin, end) of all rows.
void linear_block(int64_t B, int64_t in, const float* x, const LinearPart& part, int64_t begin,
                  int64_t end, bool add) {
  if (B == 1) {
    rows_of_block<1>(in, x, part, begin, end, 0, add);
    return;
  }
  // A few outputs at a time, so that their weights stay in the first-level cache for all rows.
  constexpr int64_t kStripFloats = 4096;
  const int64_t strip = std::max<int64_t>(2, kStripFloats / std::max<int64_t>(in, 1) / 2 * 2);
  for (int64_t from = begin; from < end; from += strip) {
    const int64_t to = std::min(from + strip, end);
    int64_t b = 0;
    for (; b + 2 <= B; b += 2) {
      rows_of_block<2>(in, x, part, from, to, b, add);
    }
    if (b < B) {
      rows_of_block<1>(in, x, part, from, to, b, add);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {
namespace {

HWY_EXPORT(linear_block);

// Multiply-adds below which another thread is not worth waking, and of a task at least.
constexpr int64_t kSerial = 1 << 17;
constexpr int64_t kTask = 1 << 15;
constexpr int64_t kTasksPerThread = 8;

}  // namespace

void linear(int64_t B, int64_t in, const float* x, std::span<const LinearPart> parts, bool add) {
  int64_t outputs = 0;
  for (const LinearPart& part : parts) {
    outputs += part.out;
  }
  const int64_t work = outputs * in * B;
  if (work <= kSerial || num_threads() == 1) {
    for (const LinearPart& part : parts) {
      HWY_DYNAMIC_DISPATCH(linear_block)(B, in, x, part, 0, part.out, add);
    }
    return;
  }
  // Tasks are blocks of one part's outputs.
  const int64_t share = std::max(work / (num_threads() * kTasksPerThread), kTask);
  const int64_t block = std::max<int64_t>(4, share / (in * B) / 4 * 4);
  const auto blocks_of = [&](const LinearPart& part) { return (part.out + block - 1) / block; };
  int64_t tasks = 0;
  for (const LinearPart& part : parts) {
    tasks += blocks_of(part);
  }
  parallel_for(tasks, [&](int64_t task, int) {
    for (const LinearPart& part : parts) {
      if (task < blocks_of(part)) {
        const int64_t begin = task * block;
        HWY_DYNAMIC_DISPATCH(linear_block)
        (B, in, x, part, begin, std::min(begin + block, part.out), add);
        return;
      }
      task -= blocks_of(part);
    }
  });
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE
