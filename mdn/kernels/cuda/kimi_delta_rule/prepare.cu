// All that a chunk's formulas need besides values and states: one warp a place, a lane holds 2 or 4
// key channels of its 16 tokens.
//
// Scores with decays are sums of direct products, k_j α_{j+1} … α_t k_t: nothing but products of
// decays, so nothing can overflow or cancel, and a decay of 0 is one like any other.
//
// Loops over tokens have fixed bounds and conditions inside: only then are they unrolled inside
// each other, and rows of tokens are registers.
#include "mdn/kernels/cuda/elements.cuh"
#include "mdn/kernels/cuda/kimi_delta_rule/types.cuh"
#include "mdn/kernels/cuda/launch.h"
#include "mdn/kernels/cuda/ptx/convert.cuh"

namespace mdn::kernels::cuda::kimi {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;

struct PrepareParams {
  const void* q;
  const void* k;
  const float* alpha;
  const float* beta;
  Work work;
  int64_t places;
  int64_t H, HV, K;
  float scale;
  bool l2norm;
};

/// What the lanes of a warp exchange.
struct Scratch {
  float KK[kChunk][kChunk];  // strictly lower
  float QK[kChunk][kChunk];  // lower, with scale
  float beta[kChunk];
  float factors[2][kChunk];  // of q, of k
};

/// kCount neighbouring channels as one access, rounded to T (float16 saturating).
template <class T, int kCount>
__device__ inline void store_rounded(unsigned char* to, const float (&x)[kCount]) {
  if constexpr (kCount == 2) {
    *reinterpret_cast<uint32_t*>(to) = ptx::pack<T>(x[0], x[1]);
  } else {
    static_assert(kCount == 4);
    *reinterpret_cast<uint2*>(to) = make_uint2(ptx::pack<T>(x[0], x[1]), ptx::pack<T>(x[2], x[3]));
  }
}

/// (I + KK D)^-1 - I by lanes 0-15 and (I + D KK)^-1 - I by lanes 16-31, a column a lane:
///   x_t = [t = c] - Σ_j<t KK[t,j] β_j x_j      x_t = [t = c] - β_t Σ_j<t KK[t,j] x_j
template <class T>
__device__ inline void solve(const Scratch& scratch, int lane, unsigned char* left,
                             unsigned char* right) {
  const int c = lane % kChunk;
  const bool by_columns = lane < kChunk;
  unsigned char* const to = (by_columns ? left : right) + 2 * c;
  float z[kChunk];
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (j < t) {
        sum += scratch.KK[t][j] * z[j];
      }
    }
    const float beta = scratch.beta[t];
    const float x = (t == c ? 1.0f : 0.0f) - (by_columns ? sum : beta * sum);
    z[t] = by_columns ? beta * x : x;
    *reinterpret_cast<uint16_t*>(to + 32 * t) =
        static_cast<uint16_t>(ptx::pack<T>(t > c ? x : 0.0f, 0.0f));
  }
}

template <class T, int kK>
__global__ void __launch_bounds__(kThreads) prepare_kernel(const PrepareParams p) {
  using Place = Record<kK>;
  constexpr int kChannels = kK / 32;  // of a lane
  extern __shared__ __align__(16) unsigned char kimi_shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  Scratch& scratch = reinterpret_cast<Scratch*>(kimi_shared)[warp];
  const int64_t place = int64_t{blockIdx.x} * kWarps + warp;
  if (place >= p.places) {
    return;
  }
  const Chunk chunk = p.work.table.chunks[place / p.work.heads];
  const int64_t head = p.work.first_head + place % p.work.heads;
  if (chunk.length == 0) {
    return;
  }
  unsigned char* const record = p.work.records + place * Place::kBytes;

  // Tokens past the end: q = k = 0, α = 1, β = 0 change no state.
  Run<T, kChannels> q[kChunk], k[kChunk];
  float alpha[kChunk][kChannels];
  const int channel = lane * kChannels;
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    q[t].clear();
    k[t].clear();
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      alpha[t][i] = 1;
    }
    if (t < chunk.length && channel < p.K) {
      const int64_t token = chunk.token + t;
      const int64_t row = (token * p.H + head / (p.HV / p.H)) * p.K + channel;
      q[t].load(static_cast<const T*>(p.q) + row);
      k[t].load(static_cast<const T*>(p.k) + row);
      load_run(p.alpha + (token * p.HV + head) * p.K + channel, alpha[t]);
    }
  }
  if (lane < kChunk) {
    const float beta = lane < chunk.length ? p.beta[(chunk.token + lane) * p.HV + head] : 0.0f;
    scratch.beta[lane] = beta;
    reinterpret_cast<float*>(record + Place::kBeta)[lane] = beta;
  }
  float factor = 1;
  if (p.l2norm) {
    float squares[2 * kChunk];
#pragma unroll
    for (int t = 0; t < kChunk; ++t) {
      float q_t[kChannels], k_t[kChannels];
      q[t].unpack(q_t);
      k[t].unpack(k_t);
      squares[t] = squares[kChunk + t] = 0;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        squares[t] += q_t[i] * q_t[i];
        squares[kChunk + t] += k_t[i] * k_t[i];
      }
    }
    factor = 1.0f / sqrtf(transposed_sums(squares) + static_cast<float>(kL2NormEps));
  }
  scratch.factors[lane / kChunk][lane % kChunk] = factor;
  reinterpret_cast<float*>(record + Place::kFactors)[lane] = factor;
  for (int i = lane; i < kChunk * kChunk; i += 32) {
    scratch.KK[i / kChunk][i % kChunk] = 0;
    scratch.QK[i / kChunk][i % kChunk] = 0;
  }
  __syncwarp();

  // Columns j and 15 - j together have 17 entries of QK and 15 of KK: a sum for every lane.
#pragma unroll
  for (int j = 0; j < kChunk / 2; ++j) {
    float sums[32];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int column = half == 0 ? j : kChunk - 1 - j;
      const int q_at = half == 0 ? 0 : kChunk - j;
      const int k_at = half == 0 ? 17 : 17 + kChunk - 1 - j;
      float write[kChannels];  // k_j decayed to token t
      k[column].unpack(write);
#pragma unroll
      for (int t = 0; t < kChunk; ++t) {
        if (t < column) {
          continue;
        }
        float q_t[kChannels], k_t[kChannels];
        q[t].unpack(q_t);
        k[t].unpack(k_t);
        float q_sum = 0, k_sum = 0;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          if (t > column) {
            write[i] *= alpha[t][i];
            k_sum += k_t[i] * write[i];
          }
          q_sum += q_t[i] * write[i];
        }
        sums[q_at + t - column] = q_sum;
        if (t > column) {
          sums[k_at + t - column - 1] = k_sum;
        }
      }
    }
    const float sum = transposed_sums(sums);
    const bool of_q = lane < 17;
    const int index = of_q ? lane : lane - 17;
    const int first = of_q ? kChunk - j : kChunk - 1 - j;  // entries of column j
    const int column = index < first ? j : kChunk - 1 - j;
    const int row = column + (index < first ? index : index - first) + (of_q ? 0 : 1);
    const float factors = scratch.factors[of_q ? 0 : 1][row] * scratch.factors[1][column];
    (of_q ? scratch.QK : scratch.KK)[row][column] = (of_q ? p.scale : 1.0f) * factors * sum;
  }
  __syncwarp();

  solve<T>(scratch, lane, record + Place::kSolve, record + Place::kSolveBack);
  {
    const float* from = &scratch.QK[lane / 2][lane % 2 * 8];
    *reinterpret_cast<uint4*>(record + Place::kScores + 16 * lane) =
        make_uint4(ptx::pack<T>(from[0], from[1]), ptx::pack<T>(from[2], from[3]),
                   ptx::pack<T>(from[4], from[5]), ptx::pack<T>(from[6], from[7]));
  }

  // since k and scale since q forwards, until k backwards
  const auto at = [&](int t) {
    const int byte = 2 * channel;
    return t * 2 * kK + ((byte / 16) ^ (t % 8)) * 16 + byte % 16;
  };
  float decay[kChannels];
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    decay[i] = 1;
  }
#pragma unroll
  for (int t = 0; t < kChunk; ++t) {
    const float q_factor = p.scale * scratch.factors[0][t];
    const float k_factor = scratch.factors[1][t];
    float q_t[kChannels], k_t[kChannels];
    q[t].unpack(q_t);
    k[t].unpack(k_t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      decay[i] *= alpha[t][i];
      q_t[i] *= q_factor * decay[i];
      k_t[i] *= k_factor * decay[i];
    }
    store_rounded<T>(record + Place::kQueries + at(t), q_t);
    store_rounded<T>(record + Place::kKeys + at(t), k_t);
  }
  store_run(reinterpret_cast<float*>(record + Place::kDecay) + channel, decay);
#pragma unroll
  for (int i = 0; i < kChannels; ++i) {
    decay[i] = 1;
  }
#pragma unroll
  for (int t = kChunk - 1; t >= 0; --t) {
    const float k_factor = scratch.factors[1][t];
    float k_t[kChannels];
    k[t].unpack(k_t);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      k_t[i] *= k_factor * decay[i];
      decay[i] *= alpha[t][i];
    }
    store_rounded<T>(record + Place::kWrites + at(t), k_t);
  }
}

}  // namespace

void prepare(const KimiDeltaRuleProblem& problem, const KimiDeltaRuleInputs& inputs,
             const Work& work, cudaStream_t stream) {
  PrepareParams p{};
  p.q = inputs.q;
  p.k = inputs.k;
  p.alpha = static_cast<const float*>(inputs.alpha);
  p.beta = static_cast<const float*>(inputs.beta);
  p.work = work;
  p.places = work.table.max_chunks * work.heads;
  p.H = problem.H;
  p.HV = problem.HV;
  p.K = problem.K;
  p.scale = static_cast<float>(problem.scale);
  p.l2norm = problem.l2norm;
  with_kernel(problem, [&](auto type, auto keys) {
    launch("launch of kimi_delta_rule prepare",
           prepare_kernel<typename decltype(type)::Type, decltype(keys)::value>,
           (p.places + kWarps - 1) / kWarps, kThreads, kWarps * sizeof(Scratch), stream, p);
  });
}

}  // namespace mdn::kernels::cuda::kimi
