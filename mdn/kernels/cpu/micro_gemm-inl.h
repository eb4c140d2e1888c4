// Register-blocked products of small float matrices that stay in the first- and second-level
// cache. Everything works on tiles of kRows rows by one panel (kPanel columns): the tile's sums
// stay in registers, and the caller decides what they start from and what becomes of them.
//
// Compiled once for every instruction set: no include guard in the usual sense.
#if defined(MDN_KERNELS_CPU_MICRO_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MDN_KERNELS_CPU_MICRO_GEMM_INL_H_
#undef MDN_KERNELS_CPU_MICRO_GEMM_INL_H_
#else
#define MDN_KERNELS_CPU_MICRO_GEMM_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int kPanelColumns = 16;
using Df = hn::CappedTag<float, kPanelColumns>;
using Vf = hn::Vec<Df>;
inline constexpr int kLanes = hn::MaxLanes(Df());
inline constexpr int kVectors = kPanelColumns / kLanes;  // of a panel's row

// Rows of a full tile: as many as leave registers for a row of the right-hand side and for one
// broadcast. Fewer than eight sums would not cover the latency of a multiply-add.
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
inline constexpr int kTileRows = 12;  // 32 registers of 16 lanes
#elif HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
inline constexpr int kTileRows = 6;  // 16 registers of 8 lanes: 12 sums
#elif HWY_ARCH_X86
inline constexpr int kTileRows = 3;  // 16 registers of 4 lanes: 12 sums
#else
inline constexpr int kTileRows = kVectors == 4 ? 6 : 3;  // 32 registers of 4 lanes: 24 sums
#endif

template <int kRows>
struct Tile {
  Vf x[kRows][kVectors];
};

template <int kRows>
HWY_INLINE void clear(Tile<kRows>& tile) {
  HWY_UNROLL(16)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      tile.x[i][v] = hn::Zero(Df());
    }
  }
}

template <int kRows>
HWY_INLINE void load(Tile<kRows>& tile, const float* from, int64_t stride) {
  HWY_UNROLL(16)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      tile.x[i][v] = hn::LoadU(Df(), from + i * stride + v * kLanes);
    }
  }
}

template <int kRows>
HWY_INLINE void store(const Tile<kRows>& tile, float* to, int64_t stride) {
  HWY_UNROLL(16)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(tile.x[i][v], Df(), to + i * stride + v * kLanes);
    }
  }
}

/// tile = factor from
template <int kRows>
HWY_INLINE void load_scaled(Tile<kRows>& tile, float factor, const float* from, int64_t stride) {
  const Vf factors = hn::Set(Df(), factor);
  HWY_UNROLL(16)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      tile.x[i][v] = hn::Mul(factors, hn::LoadU(Df(), from + i * stride + v * kLanes));
    }
  }
}

/// tile += factor from
template <int kRows>
HWY_INLINE void add_scaled(Tile<kRows>& tile, float factor, const float* from, int64_t stride) {
  const Vf factors = hn::Set(Df(), factor);
  HWY_UNROLL(16)
  for (int i = 0; i < kRows; ++i) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      tile.x[i][v] =
          hn::MulAdd(factors, hn::LoadU(Df(), from + i * stride + v * kLanes), tile.x[i][v]);
    }
  }
}

enum class Left { kRowMajor, kTransposed };

/// tile[i][:] += Σ_p A[i][p] b[p][:],  p < depth. A[i][p] is a[i lda + p], or a[p lda + i] where
/// the left-hand side is stored transposed; b has rows of one panel at stride ldb.
template <Left kLeft, int kRows>
HWY_INLINE void accumulate(Tile<kRows>& tile, const float* HWY_RESTRICT a, int64_t lda,
                           const float* HWY_RESTRICT b, int64_t ldb, int64_t depth) {
  Tile<kRows> sum = tile;
  for (int64_t p = 0; p < depth; ++p) {
    Vf row[kVectors];
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      row[v] = hn::LoadU(Df(), b + p * ldb + v * kLanes);
    }
    HWY_UNROLL(16)
    for (int i = 0; i < kRows; ++i) {
      const Vf left = hn::Set(Df(), kLeft == Left::kRowMajor ? a[i * lda + p] : a[p * lda + i]);
      HWY_UNROLL(16)
      for (int v = 0; v < kVectors; ++v) {
        sum.x[i][v] = hn::MulAdd(left, row[v], sum.x[i][v]);
      }
    }
  }
  tile = sum;
}

/// tile[i] += factor tile[j]
template <int kRows>
HWY_INLINE void add_row(Tile<kRows>& tile, int i, float factor, int j) {
  const Vf factors = hn::Set(Df(), factor);
  HWY_UNROLL(16)
  for (int v = 0; v < kVectors; ++v) {
    tile.x[i][v] = hn::MulAdd(factors, tile.x[j][v], tile.x[i][v]);
  }
}

/// tile[i] += Σ_{j < i} lower[i][j] tile[j], from the top: solves (I - lower) x = tile.
template <int kRows>
HWY_INLINE void substitute_forward(Tile<kRows>& tile, const float* lower, int64_t stride) {
  if constexpr (kRows > 1) {
    HWY_UNROLL(16)
    for (int i = 1; i < kRows; ++i) {
      HWY_UNROLL(16)
      for (int j = 0; j < i; ++j) {
        add_row(tile, i, lower[i * stride + j], j);
      }
    }
  }
}

/// tile[j] += Σ_{i > j} lower[i][j] tile[i], from the bottom: solves (I - lowerᵀ) x = tile.
template <int kRows>
HWY_INLINE void substitute_backward(Tile<kRows>& tile, const float* lower, int64_t stride) {
  if constexpr (kRows > 1) {
    HWY_UNROLL(16)
    for (int i = kRows - 1; i > 0; --i) {
      HWY_UNROLL(16)
      for (int j = 0; j < i; ++j) {
        add_row(tile, j, lower[i * stride + j], i);
      }
    }
  }
}

/// How `rows` rows are cut into tiles: full ones from the top, then at most two others. A
/// remainder of one or two rows would leave the arithmetic units idle, so it shares with a full
/// tile.
struct TileRows {
  explicit TileRows(int64_t rows) : full(rows / kTileRows), last{rows % kTileRows, 0} {
    if (last[0] > 0 && last[0] <= kTileRows / 3 && full > 0) {
      const int64_t both = last[0] + kTileRows;
      --full;
      last[0] = (both + 1) / 2;
      last[1] = both / 2;
    }
  }
  int64_t full;
  int64_t last[2];
};

template <int kRows>
using RowCount = std::integral_constant<int, kRows>;

template <int kRows, class Body>
HWY_INLINE void dispatch_rows(int64_t rows, int64_t first, const Body& body) {
  if constexpr (kRows >= 1) {
    if (rows == kRows) {
      body(RowCount<kRows>(), first);
    } else {
      dispatch_rows<kRows - 1>(rows, first, body);
    }
  }
}

/// Calls body(RowCount<n>(), first) for the tiles of `rows` rows, from the top.
template <class Body>
HWY_INLINE void for_tiles(int64_t rows, const Body& body) {
  const TileRows cut(rows);
  for (int64_t i = 0; i < cut.full; ++i) {
    body(RowCount<kTileRows>(), i * kTileRows);
  }
  int64_t first = cut.full * kTileRows;
  for (int64_t last : cut.last) {
    dispatch_rows<kTileRows - 1>(last, first, body);
    first += last;
  }
}

/// Likewise from the bottom.
template <class Body>
HWY_INLINE void for_tiles_reversed(int64_t rows, const Body& body) {
  const TileRows cut(rows);
  int64_t first = cut.full * kTileRows;
  dispatch_rows<kTileRows - 1>(cut.last[1], first + cut.last[0], body);
  dispatch_rows<kTileRows - 1>(cut.last[0], first, body);
  for (int64_t i = cut.full - 1; i >= 0; --i) {
    body(RowCount<kTileRows>(), i * kTileRows);
  }
}

/// to[j][i] = from[i][j], 4 x 4.
HWY_INLINE void transpose_4x4(const float* from, int64_t from_stride, float* to,
                              int64_t to_stride) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
#else
  const hn::FixedTag<float, 4> d4;
  const auto r0 = hn::LoadU(d4, from);
  const auto r1 = hn::LoadU(d4, from + from_stride);
  const auto r2 = hn::LoadU(d4, from + 2 * from_stride);
  const auto r3 = hn::LoadU(d4, from + 3 * from_stride);
  const auto a = hn::InterleaveLower(d4, r0, r2);  // 00 20 01 21
  const auto b = hn::InterleaveLower(d4, r1, r3);  // 10 30 11 31
  const auto c = hn::InterleaveUpper(d4, r0, r2);  // 02 22 03 23
  const auto e = hn::InterleaveUpper(d4, r1, r3);
  hn::StoreU(hn::InterleaveLower(d4, a, b), d4, to);
  hn::StoreU(hn::InterleaveUpper(d4, a, b), d4, to + to_stride);
  hn::StoreU(hn::InterleaveLower(d4, c, e), d4, to + 2 * to_stride);
  hn::StoreU(hn::InterleaveUpper(d4, c, e), d4, to + 3 * to_stride);
#endif
}

/// to[j][i] = from[i][j]; rows and columns are multiples of 4.
HWY_INLINE void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                          float* to, int64_t to_stride) {
  for (int64_t i = 0; i < rows; i += 4) {
    for (int64_t j = 0; j < columns; j += 4) {
      transpose_4x4(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    }
  }
}

/// Σ x y over `count` floats, a multiple of kPanel.
HWY_INLINE float dot(const float* x, const float* y, int64_t count) {
  Tile<1> sums;
  clear(sums);
  for (int64_t i = 0; i < count; i += kPanelColumns) {
    HWY_UNROLL(16)
    for (int v = 0; v < kVectors; ++v) {
      sums.x[0][v] = hn::MulAdd(hn::LoadU(Df(), x + i + v * kLanes),
                                hn::LoadU(Df(), y + i + v * kLanes), sums.x[0][v]);
    }
  }
  Vf sum = sums.x[0][0];
  for (int v = 1; v < kVectors; ++v) {
    sum = hn::Add(sum, sums.x[0][v]);
  }
  return hn::GetLane(hn::SumOfLanes(Df(), sum));
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle
