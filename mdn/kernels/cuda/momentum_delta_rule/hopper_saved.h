// What the Hopper forward pass makes of a chunk before its recurrence runs, in global memory: one
// record of kRecordBytes for every (chunk table entry, value head), record entry * HV + head.
// `saved` holds them and, where sequences are cut into segments, a SegmentMemory
// (hopper_segments.h); without `saved` both lie in the forward workspace.
//
// Names as in docs/math/momentum_delta_rule.md, of a chunk of C = 64 tokens, rows t and columns j:
//
//     T      (I + L D)^-1 2^-x, fp16, L = H o KK^T with the keys that the operator sees
//     PGD    2^x scale (Q K^T) o G D, D = diag(eta), fp16
//     e, c   pi_t a_{t-1} rk_t and H[t,0] rk_t: W = V - e K_raw S0 + c K_raw M0
//     a, b   scale a_t rq_t and scale G[t,0] rq_t: O = a Q_raw S0 - b Q_raw M0 + PGD R'
//     g, n   2^x eta_j G[C,j] and 2^x eta_j Mu[C,j]: S1 = a_C S0 - b_C M0 + K^T (g o R'),
//            M1 = m M0 - K^T (n o R')
//     rk, rq 1 / |k_t|, 1 / |q_t| with l2norm, else 1; K_raw, Q_raw are the rows as given and
//            K = rk K_raw
//
// R' = T W is the true r of the operator times 2^-x. x >= 0 is the least exponent with which every
// |T| <= 32768, at most 8: 0 unless the inverse leaves the range of fp16. Conversions saturate.
// w_limit = 64000 / (max(1, g, n) times the largest sum of |T| over a row), between 2^-20 and 2^15.
// Tokens past the chunk's end: rows and columns of T and PGD and all vectors are 0; a_C, b_C and m
// are those of the last real token.
//
// Both matrices are 8192 bytes with rows of 128 bytes (64 columns) and the 128-byte swizzle: the
// 16-byte unit u of row r lies at unit u ^ (r % 8), so that a plain copy puts a wgmma operand into
// shared memory. Each record starts on a multiple of 256 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdn::kernels::cuda {

inline constexpr int kChunk = 64;
inline constexpr int kUnusedFloats = 59;  // up to a multiple of 256 bytes

/// The float part of a record.
struct ChunkVectors {
  float e[kChunk];
  float c[kChunk];
  float a[kChunk];
  float b[kChunk];
  float g[kChunk];
  float n[kChunk];
  float rk[kChunk];
  float rq[kChunk];
  float a_end;                  // a_C
  float b_end;                  // b_C
  float m_end;                  // m
  float r_scale;                // 2^x: r = r_scale R'
  float w_limit;                // with every |W| at most this, R', g R' and n R' fit fp16
  float unused[kUnusedFloats];  // 0
};
static_assert(sizeof(ChunkVectors) == 2304);

inline constexpr int kRecordT = 0;
inline constexpr int kRecordPGD = 8192;
inline constexpr int kRecordVectors = 16384;
inline constexpr int kRecordBytes = kRecordVectors + static_cast<int>(sizeof(ChunkVectors));
static_assert(kRecordBytes % 256 == 0);

}  // namespace mdn::kernels::cuda
