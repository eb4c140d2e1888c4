#include "tests/support/momentum_delta_rule_rounding.h"

#include <algorithm>
#include <cmath>

#include "mdn/core/error.h"

namespace mdn::test {
namespace {

/// Relative errors, uniform in ±unit, from a linear congruential generator: speed counts here.
struct Noise {
  double unit = 0;
  uint64_t state = 1;
  void draw() { state = state * 6364136223846793005u + 1442695040888963407u; }
  double first() const { return unit * 0x1p-31 * static_cast<int32_t>(state >> 32); }
  double second() const { return unit * 0x1p-31 * static_cast<int32_t>(state); }
  double operator()(double x) {
    draw();
    return x + x * first();
  }
};

// One a thread, or numbers would have to carry it.
thread_local Noise arithmetic;

/// A number whose additions and products are off as `arithmetic` says. Adding 0 is exact, as is
/// multiplying by 0 or 1.
struct Number {
  double x = 0;
  Number() = default;
  Number(double value) : x(value) {}  // NOLINT(google-explicit-constructor)
};
Number operator*(Number a, Number b) {
  return a.x == 1 ? b : b.x == 1 ? a : Number(arithmetic(a.x * b.x));
}
Number operator+(Number a, Number b) {
  return a.x == 0 ? b : b.x == 0 ? a : Number(arithmetic(a.x + b.x));
}
Number operator-(Number a) {
  return {-a.x};
}
Number operator-(Number a, Number b) {
  return a + -b;
}
void operator+=(Number& a, Number b) {
  a = a + b;
}
/// sum += a b, two roundings
void add_product(Number& sum, Number a, Number b) {
  arithmetic.draw();
  const double p = a.x * b.x * (1 + arithmetic.first());
  const double whole = sum.x + p;
  sum.x = p == 0 ? sum.x : sum.x == 0 ? p : whole + whole * arithmetic.second();
}

struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<Number> x;
  Matrix() = default;
  Matrix(int64_t r, int64_t c) : rows(r), columns(c), x(static_cast<size_t>(r * c)) {}
  Number& operator()(int64_t i, int64_t j) { return x[static_cast<size_t>(i * columns + j)]; }
  Number operator()(int64_t i, int64_t j) const { return x[static_cast<size_t>(i * columns + j)]; }
};
using Vector = std::vector<Number>;

Matrix transposed(const Matrix& a) {
  Matrix b(a.columns, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) {
      b(j, i) = a(i, j);
    }
  }
  return b;
}

/// c + a b, each sum in the order of its terms.
Matrix add_product(Matrix c, const Matrix& a, const Matrix& b) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t n = 0; n < a.columns; ++n) {
      const Number a_in = a(i, n);
      if (a_in.x != 0 && arithmetic.unit > 0) {
        for (int64_t j = 0; j < b.columns; ++j) {
          add_product(c(i, j), a_in, b(n, j));
        }
      } else if (a_in.x != 0) {
        for (int64_t j = 0; j < b.columns; ++j) {
          c(i, j).x += a_in.x * b(n, j).x;
        }
      }
    }
  }
  return c;
}

Matrix product(const Matrix& a, const Matrix& b) {
  return add_product(Matrix(a.rows, b.columns), a, b);
}

/// diag(d) a
Matrix scale_rows(const Vector& d, Matrix a) {
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) {
      a(i, j) = d[static_cast<size_t>(i)] * a(i, j);
    }
  }
  return a;
}

Vector row_products(const Matrix& a, const Matrix& b) {
  Vector sums(static_cast<size_t>(a.rows));
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.columns; ++j) {
      add_product(sums[static_cast<size_t>(i)], a(i, j), b(i, j));
    }
  }
  return sums;
}

Number inner(const Matrix& a, const Matrix& b) {
  Number sum;
  for (size_t i = 0; i < a.x.size(); ++i) {
    add_product(sum, a.x[i], b.x[i]);
  }
  return sum;
}

/// a scaled + b scaled
Matrix combine(Number s, const Matrix& a, Number t, const Matrix& b) {
  Matrix c(a.rows, a.columns);
  for (size_t i = 0; i < a.x.size(); ++i) {
    c.x[i] = s * a.x[i] + t * b.x[i];
  }
  return c;
}

/// A chunk of one head: what the forward pass leaves to the backward pass.
struct Chunk {
  int64_t first = 0, tokens = 0;
  Matrix q, k;                // [C, K], normalised if asked for
  Vector q_factor, k_factor;  // of the normalisation
  Vector alpha, mu, eta, beta, pi;
  Vector a, b, c, e, m, g, n;  // [C]
  Matrix P, KK, G, Mu, H;      // [C, C]
  Matrix r_from_r, o_from_r;   // [C, C]: R = V - .. + r_from_r R, O = .. + o_from_r R
  Matrix T;                    // [C, C]: the inverse of I - r_from_r, where operands are rounded
  Matrix S, M;                 // [K, V], before the chunk, as products read them
  Matrix R;                    // [C, V], as the backward pass reads it
};

class Simulation {
 public:
  Simulation(const MomentumDeltaRuleData& data, const Rounding& rounding, uint64_t seed)
      : data_(data),
        c_(data.c),
        rounding_(rounding),
        half_in_units_{rounding.half.bits},
        state_(seed * 77 + 5) {
    arithmetic = {rounding.unit, seed * 1234567 + 1};
    const auto fill = [&](const char* name, const std::vector<double>& like) {
      results_.push_back({name, std::vector<double>(like.size())});
    };
    const std::vector<double> states(static_cast<size_t>(data.N * c_.HV * c_.V * c_.K));
    fill("o", data.v);
    fill("final_S", states);
    if (c_.momentum) {
      fill("final_M", states);
    }
    if (!rounding.gradients) {
      return;
    }
    for (auto& [name, tensor] : const_cast<MomentumDeltaRuleData&>(data).tensors()) {
      if (name != "S" && name != "M") {
        fill(("d_" + name).c_str(), *tensor);
      }
    }
    if (data.wants_initial_gradient) {
      fill("d_S", states);
      if (c_.momentum) {
        fill("d_M", states);
      }
    }
  }

  Results run() {
    const std::vector<int64_t>& ends = data_.cu_seqlens;
    for (int64_t n = 0; n < data_.N; ++n) {
      const size_t i = static_cast<size_t>(n);
      const int64_t begin = ends.empty() ? n * c_.T : ends[i];
      const int64_t end = ends.empty() ? begin + c_.T : ends[i + 1];
      for (int64_t head = 0; head < c_.HV; ++head) {
        run_head(n, head, begin, end);
      }
    }
    return std::move(results_);
  }

 private:
  std::vector<double>& out(const std::string& name) {
    return const_cast<std::vector<double>&>(at(results_, name));
  }

  bool rounds() const { return rounding_.inputs.bits > 0; }

  /// What a product of matrices reads of numbers that were made on the way: each rounded to
  /// nearest, as if it were another one, as the format's grid is stretched by a number between 1
  /// and 2 of its own, and below the normal numbers moved by one.
  Vector operand(Vector a, const Format& format) {
    if (format.bits == 0) {
      return a;
    }
    const double normal = std::ldexp(format.step, format.bits - 1);
    const double splitter = std::ldexp(1.0, 53 - format.bits) + 1;  // Veltkamp's
    for (Number& value : a) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;
      const double drawn = static_cast<double>(state_ >> 32) * 0x1p-32;
      if (std::abs(value.x) >= normal) {
        const double stretched = value.x * (1 + drawn), above = stretched * splitter;
        value.x = (above - (above - stretched)) / (1 + drawn);
      } else if (value.x != 0) {
        value.x = format.step * (std::round(value.x / format.step + drawn) - drawn);
      }
    }
    return a;
  }
  Matrix operand(Matrix a, const Format& format) {
    a.x = operand(std::move(a.x), format);
    return a;
  }

  int64_t key_head(int64_t head) const { return head / (c_.HV / c_.H); }

  Matrix rows(const std::vector<double>& x, int64_t first, int64_t tokens, int64_t heads,
              int64_t head, int64_t columns) const {
    Matrix a(tokens, columns);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < columns; ++j) {
        a(t, j) = x[static_cast<size_t>(((first + t) * heads + head) * columns + j)];
      }
    }
    return a;
  }

  Vector gates(const std::vector<double>& x, int64_t first, int64_t tokens, int64_t head) const {
    const Matrix column = rows(x, first, tokens, c_.HV, head, 1);
    return column.x;
  }

  /// A state of [N, HV, V, K], or zeros, as K x V.
  Matrix state(const std::vector<double>& x, int64_t n, int64_t head) const {
    return x.empty() ? Matrix(c_.K, c_.V)
                     : transposed(rows(x, n * c_.HV * c_.V, c_.V, 1, head * c_.V, c_.K));
  }

  void put_state(const char* name, int64_t n, int64_t head, const Matrix& a) {
    std::vector<double>& x = out(name);
    for (int64_t v = 0; v < c_.V; ++v) {
      for (int64_t i = 0; i < c_.K; ++i) {
        x[static_cast<size_t>(((n * c_.HV + head) * c_.V + v) * c_.K + i)] = a(i, v).x;
      }
    }
  }

  /// Rows made unit; returns the factors.
  static Vector normalise(Matrix& a) {
    Vector factors = row_products(a, a);
    for (Number& f : factors) {
      f = Number(arithmetic(1 / std::sqrt((f + Number(kernels::kL2NormEps)).x)));
    }
    a = scale_rows(factors, a);
    return factors;
  }

  Chunk load(int64_t first, int64_t tokens, int64_t head) {
    Chunk chunk;
    chunk.first = first;
    chunk.tokens = tokens;
    chunk.q = rows(data_.q, first, tokens, c_.H, key_head(head), c_.K);
    chunk.k = rows(data_.k, first, tokens, c_.H, key_head(head), c_.K);
    if (c_.l2norm) {
      chunk.q_factor = normalise(chunk.q);
      chunk.k_factor = normalise(chunk.k);
    }
    chunk.alpha = gates(data_.alpha, first, tokens, head);
    chunk.mu =
        c_.momentum ? gates(data_.mu, first, tokens, head) : Vector(static_cast<size_t>(tokens));
    chunk.eta = gates(data_.eta, first, tokens, head);
    chunk.beta = gates(data_.beta, first, tokens, head);
    chunk.pi = data_.pi.empty() ? chunk.alpha : gates(data_.pi, first, tokens, head);
    return chunk;
  }

  /// All that does not depend on the states.
  void prepare(Chunk& x) {
    make_masks(x);
    const Vector scale(static_cast<size_t>(x.tokens), Number(data_.scale));
    x.r_from_r = scale_columns(times(lower(x.KK, false), x.H), minus(x.eta));
    x.o_from_r = operand(scale_columns(scale_rows(scale, times(x.P, x.G)), x.eta), rounding_.half);
    if (rounds()) {
      Matrix identity(x.tokens, x.tokens);
      for (int64_t i = 0; i < x.tokens; ++i) {
        identity(i, i) = 1;
      }
      x.T = operand(substitute(x.r_from_r, identity, false), rounding_.half);
    }
  }

  static void make_masks(Chunk& x) {
    x.G = x.Mu = x.H = Matrix(x.tokens, x.tokens);
    Number a = 1, b = 0, m = 1;
    for (int64_t t = 0; t < x.tokens; ++t) {
      const auto i = static_cast<size_t>(t);
      x.e.push_back(x.pi[i] * a);
      x.c.push_back(x.pi[i] * b);
      a = x.alpha[i] * a;
      m = x.mu[i] * m;
      b = x.alpha[i] * b + x.beta[i] * m;
      x.a.push_back(a);
      x.b.push_back(b);
      x.m.push_back(m);
      for (int64_t j = 0; j < t; ++j) {
        x.Mu(t, j) = x.mu[i] * x.Mu(t - 1, j);
        x.G(t, j) = x.alpha[i] * x.G(t - 1, j) + x.beta[i] * x.Mu(t, j);
        x.H(t, j) = x.pi[i] * x.G(t - 1, j);
      }
      x.Mu(t, t) = 1;
      x.G(t, t) = x.beta[i];
    }
    for (int64_t j = 0; j < x.tokens; ++j) {
      x.g.push_back(x.G(x.tokens - 1, j));
      x.n.push_back(x.Mu(x.tokens - 1, j));
    }
    x.P = product(x.q, transposed(x.k));
    x.KK = product(x.k, transposed(x.k));
  }

  static Vector times(const Vector& a, const Vector& b) {
    Vector c(a.size());
    for (size_t i = 0; i < a.size(); ++i) {
      c[i] = a[i] * b[i];
    }
    return c;
  }
  static Vector minus(Vector a) {
    for (Number& value : a) {
      value = -value;
    }
    return a;
  }
  static Matrix times(Matrix a, const Matrix& b) {
    for (size_t i = 0; i < a.x.size(); ++i) {
      a.x[i] = a.x[i] * b.x[i];
    }
    return a;
  }
  /// a diag(d)
  static Matrix scale_columns(Matrix a, const Vector& d) {
    for (int64_t i = 0; i < a.rows; ++i) {
      for (int64_t j = 0; j < a.columns; ++j) {
        a(i, j) = a(i, j) * d[static_cast<size_t>(j)];
      }
    }
    return a;
  }
  static Matrix lower(Matrix a, bool diagonal) {
    for (int64_t i = 0; i < a.rows; ++i) {
      for (int64_t j = i + (diagonal ? 1 : 0); j < a.columns; ++j) {
        a(i, j) = 0;
      }
    }
    return a;
  }

  /// x of (I - below) x = rhs, rows from the first on; or of the transposed system, from the last.
  static Matrix substitute(const Matrix& below, Matrix x, bool from_last) {
    const int64_t n = x.rows;
    for (int64_t step = 0; step < n; ++step) {
      const int64_t i = from_last ? n - 1 - step : step;
      for (int64_t j = from_last ? i + 1 : 0; j < (from_last ? n : i); ++j) {
        const Number factor = from_last ? below(j, i) : below(i, j);
        for (int64_t v = 0; v < x.columns; ++v) {
          add_product(x(i, v), factor, x(j, v));
        }
      }
    }
    return x;
  }
  /// The same for the chunk's system; every column of rhs may have a unit of its own.
  Matrix solve(const Chunk& x, Matrix rhs, bool transposed_system) {
    if (!rounds()) {
      return substitute(x.r_from_r, std::move(rhs), transposed_system);
    }
    return product(transposed_system ? transposed(x.T) : x.T,
                   operand(std::move(rhs), half_in_units_));
  }

  /// R of the chunk, whose states are kept as products read them:
  /// (I + L D) R = V - diag(e) K S + diag(c) K M
  Matrix solve_values(Chunk& x, int64_t head, const Matrix& S, const Matrix& M) {
    x.S = operand(S, rounding_.inputs);
    x.M = operand(M, rounding_.inputs);
    Matrix W = rows(data_.v, x.first, x.tokens, c_.HV, head, c_.V);
    W = add_product(W, scale_rows(minus(x.e), x.k), x.S);
    W = add_product(W, scale_rows(x.c, x.k), x.M);
    return solve(x, std::move(W), false);
  }

  /// S <- a S - b M + Kᵀ g_U,  M <- m M + Kᵀ n_U with g_U = diag(g) D R, n_U = -diag(n) D R
  static void advance(const Chunk& x, const Matrix& k, const Matrix& g_U, const Matrix& n_U,
                      Matrix& S, Matrix& M) {
    const Matrix k_transposed = transposed(k);
    S = add_product(combine(x.a.back(), S, -x.b.back(), M), k_transposed, g_U);
    M = add_product(combine(x.m.back(), M, 0, M), k_transposed, n_U);
  }

  /// Moves S, M over the chunk; o is written. Without rounded operands what the backward pass reads
  /// is kept in the chunk.
  void forward(Chunk& x, int64_t head, Matrix& S, Matrix& M) {
    const Matrix R = solve_values(x, head, S, M);
    x.R = operand(R, half_in_units_);
    // O = scale [diag(a) Q S - diag(b) Q M + (P∘G) D R]
    const Vector scale(static_cast<size_t>(x.tokens), Number(data_.scale));
    Matrix O = product(scale_rows(times(scale, x.a), x.q), x.S);
    O = add_product(O, scale_rows(times(scale, minus(x.b)), x.q), x.M);
    O = add_product(O, x.o_from_r, x.R);
    std::vector<double>& o = out("o");
    for (int64_t t = 0; t < x.tokens; ++t) {
      for (int64_t v = 0; v < c_.V; ++v) {
        o[static_cast<size_t>(((x.first + t) * c_.HV + head) * c_.V + v)] = O(t, v).x;
      }
    }
    // The factors are rounded, their products with rounded R, and normalised keys.
    const Vector g = operand(times(x.eta, x.g), rounding_.half);
    const Vector n = operand(minus(times(x.eta, x.n)), rounding_.half);
    advance(x, c_.l2norm ? operand(x.k, rounding_.half) : x.k,
            operand(scale_rows(g, x.R), half_in_units_),
            operand(scale_rows(n, x.R), half_in_units_), S, M);
  }

  /// The backward pass's walk over the same states, where operands are rounded: it keeps what it
  /// reads in the type of the inputs.
  void walk_again(Chunk& x, int64_t head, Matrix& S, Matrix& M) {
    const Matrix R = solve_values(x, head, S, M);
    x.R = operand(R, rounding_.inputs);
    advance(x, x.k, operand(scale_rows(times(x.eta, x.g), R), rounding_.inputs),
            operand(scale_rows(minus(times(x.eta, x.n)), R), rounding_.inputs), S, M);
  }

  void add_rows(const char* name, const Chunk& x, int64_t head, const Matrix& unit,
                const Vector& factors, Matrix gradient) {
    if (c_.l2norm) {  // factor (gradient - unit (unit·gradient))
      const Vector along = minus(row_products(unit, gradient));
      // All but the last 64 channels wait for `along` in memory, in the type of the inputs; where
      // heads are shared, as sums in float32.
      if (rounds() && c_.H == c_.HV) {
        const Matrix waiting = operand(gradient, rounding_.inputs);
        for (int64_t t = 0; t < gradient.rows; ++t) {
          for (int64_t i = 0; i < c_.K - 64; ++i) {
            gradient(t, i) = waiting(t, i);
          }
        }
      }
      gradient = scale_rows(factors, combine(1, gradient, 1, scale_rows(along, unit)));
    }
    std::vector<double>& to = out(name);
    for (int64_t t = 0; t < x.tokens; ++t) {
      for (int64_t i = 0; i < c_.K; ++i) {
        double& sum = to[static_cast<size_t>(((x.first + t) * c_.H + key_head(head)) * c_.K + i)];
        sum = (Number(sum) + gradient(t, i)).x;
      }
    }
  }

  void put_gate(const char* name, const Chunk& x, int64_t head, const Vector& gradient) {
    for (int64_t t = 0; t < x.tokens; ++t) {
      out(name)[static_cast<size_t>((x.first + t) * c_.HV + head)] =
          gradient[static_cast<size_t>(t)].x;
    }
  }

  /// Moves dS, dM back over the chunk and writes the gradients of its inputs.
  void backward(const Chunk& x, int64_t head, Matrix& dS, Matrix& dM) {
    const int64_t C = x.tokens;
    const Vector scale(static_cast<size_t>(C), Number(data_.scale));
    const Matrix dO = rows(data_.d_o, x.first, C, c_.HV, head, c_.V);
    const Matrix dS_read = operand(dS, rounding_.inputs), dM_read = operand(dM, rounding_.inputs);

    // dW = o_from_rᵀ dO + x_from_r dX + r_from_rᵀ dW
    Matrix dU = product(transposed(x.o_from_r), dO);
    dU = add_product(dU, scale_rows(times(x.eta, x.g), x.k), dS_read);
    dU = add_product(dU, scale_rows(minus(times(x.eta, x.n)), x.k), dM_read);
    const Matrix dW = solve(x, std::move(dU), true);
    const Matrix dW_read = operand(dW, rounding_.inputs);
    for (int64_t t = 0; t < C; ++t) {
      for (int64_t v = 0; v < c_.V; ++v) {
        out("d_v")[static_cast<size_t>(((x.first + t) * c_.HV + head) * c_.V + v)] = dW(t, v).x;
      }
    }

    // The rows' products over V.
    const Matrix S_t = transposed(x.S), M_t = transposed(x.M);
    const Matrix oS = product(dO, S_t), oM = product(dO, M_t);
    const Matrix wS = product(dW_read, S_t), wM = product(dW_read, M_t);
    const Matrix rS = product(x.R, transposed(dS_read)), rM = product(x.R, transposed(dM_read));
    const Matrix oR = lower(product(dO, transposed(x.R)), true);
    const Matrix F = lower(product(dW_read, transposed(x.R)), false);
    const Matrix Y = scale_columns(scale_rows(scale, oR), x.eta);
    const Matrix E = scale_columns(F, minus(x.eta));
    const Matrix dP = operand(times(Y, x.G), rounding_.inputs);
    const Matrix Z = operand(times(E, x.H), rounding_.inputs);

    // dQ = scale (diag(a) oS - diag(b) oM) + dP K
    Matrix dQ =
        combine(1, scale_rows(times(scale, x.a), oS), 1, scale_rows(times(scale, minus(x.b)), oM));
    dQ = add_product(dQ, dP, x.k);
    // dK = dPᵀ Q + (Z + Zᵀ) K - diag(e) wS + diag(c) wM + D (diag(g) rS - diag(n) rM)
    const Matrix from_w = combine(1, scale_rows(minus(x.e), wS), 1, scale_rows(x.c, wM));
    const Matrix from_r =
        combine(1, scale_rows(times(x.eta, x.g), rS), 1, scale_rows(minus(times(x.eta, x.n)), rM));
    Matrix dK = combine(1, from_w, 1, from_r);
    dK = add_product(dK, transposed(dP), x.q);
    dK = add_product(dK, Z, x.k);
    dK = add_product(dK, transposed(Z), x.k);
    add_rows("d_q", x, head, x.q, x.q_factor, dQ);
    add_rows("d_k", x, head, x.k, x.k_factor, dK);

    const Vector da = times(scale, row_products(x.q, oS));
    const Vector db = times(minus(scale), row_products(x.q, oM));
    const Vector dc = row_products(x.k, wM);
    const Vector de = minus(row_products(x.k, wS));
    const Vector k_rS = row_products(x.k, rS), k_rM = row_products(x.k, rM);

    // The masks' recurrence in reverse.
    Vector carry_G = times(x.eta, k_rS), carry_Mu = minus(times(x.eta, k_rM));
    Number carry_a = inner(dS_read, x.S), carry_b = -inner(dS_read, x.M),
           carry_m = inner(dM_read, x.M);
    Vector dalpha(x.alpha.size()), dmu = dalpha, deta = dalpha, dbeta = dalpha, dpi = dalpha;
    for (int64_t t = C - 1; t >= 0; --t) {
      const auto i = static_cast<size_t>(t);
      for (int64_t j = 0; j <= t; ++j) {
        const auto column = static_cast<size_t>(j);
        const Number G_before = t > j ? x.G(t - 1, j) : 0;
        const Number Mu_before = t > j ? x.Mu(t - 1, j) : 0;
        const Number grad_G = carry_G[column] + Y(t, j) * x.P(t, j);
        const Number grad_Mu = carry_Mu[column] + x.beta[i] * grad_G;
        const Number grad_H = t > j ? E(t, j) * x.KK(t, j) : 0;
        dbeta[i] += grad_G * x.Mu(t, j);
        dmu[i] += grad_Mu * Mu_before;
        dalpha[i] += grad_G * G_before;
        dpi[i] += grad_H * G_before;
        carry_G[column] = x.alpha[i] * grad_G + x.pi[i] * grad_H;
        carry_Mu[column] = x.mu[i] * grad_Mu;
        // deta_j = Σ_t scale oR P G - F L
        deta[column] +=
            scale[i] * oR(t, j) * x.P(t, j) * x.G(t, j) - F(t, j) * x.KK(t, j) * x.H(t, j);
      }
      const Number a_before = t > 0 ? x.a[i - 1] : 1;
      const Number b_before = t > 0 ? x.b[i - 1] : 0;
      const Number m_before = t > 0 ? x.m[i - 1] : 1;
      const Number grad_b = carry_b + db[i];
      const Number grad_m = carry_m + x.beta[i] * grad_b;
      const Number grad_a = carry_a + da[i];
      dbeta[i] += grad_b * x.m[i];
      dmu[i] += grad_m * m_before;
      dalpha[i] += grad_b * b_before + grad_a * a_before;
      dpi[i] += dc[i] * b_before + de[i] * a_before;
      carry_b = x.alpha[i] * grad_b + x.pi[i] * dc[i];
      carry_m = x.mu[i] * grad_m;
      carry_a = x.alpha[i] * grad_a + x.pi[i] * de[i];
    }
    for (size_t j = 0; j < deta.size(); ++j) {
      deta[j] += x.g[j] * k_rS[j] - x.n[j] * k_rM[j];
    }
    if (c_.momentum) {
      put_gate("d_mu", x, head, dmu);
    }
    put_gate("d_eta", x, head, deta);
    put_gate("d_beta", x, head, dbeta);
    if (!data_.pi.empty()) {
      put_gate("d_pi", x, head, dpi);
    } else {
      for (size_t j = 0; j < dalpha.size(); ++j) {
        dalpha[j] += dpi[j];
      }
    }
    put_gate("d_alpha", x, head, dalpha);

    // dS <- a dS + scale Qᵀ diag(a) dO - Kᵀ diag(e) dW
    // dM <- m dM - b dS - scale Qᵀ diag(b) dO + Kᵀ diag(c) dW
    const Matrix q_t = transposed(x.q), k_t = transposed(x.k);
    const Matrix before = dS;
    dS = combine(x.a.back(), before, 0, before);
    dS = add_product(dS, q_t, operand(scale_rows(times(scale, x.a), dO), rounding_.inputs));
    dS = add_product(dS, k_t, operand(scale_rows(minus(x.e), dW), rounding_.inputs));
    dM = combine(x.m.back(), dM, -x.b.back(), before);
    dM = add_product(dM, q_t, operand(scale_rows(times(scale, minus(x.b)), dO), rounding_.inputs));
    dM = add_product(dM, k_t, operand(scale_rows(x.c, dW), rounding_.inputs));
  }

  void run_head(int64_t n, int64_t head, int64_t begin, int64_t end) {
    Matrix S = state(data_.S, n, head), M = state(data_.M, n, head);
    std::vector<Chunk> chunks;
    for (int64_t first = begin; first < end; first += rounding_.chunk) {
      chunks.push_back(load(first, std::min(rounding_.chunk, end - first), head));
      prepare(chunks.back());
      forward(chunks.back(), head, S, M);
    }
    put_state("final_S", n, head, S);
    if (c_.momentum) {
      put_state("final_M", n, head, M);
    }
    if (!rounding_.gradients) {
      return;
    }
    if (rounds()) {
      S = state(data_.S, n, head);
      M = state(data_.M, n, head);
      for (Chunk& chunk : chunks) {
        walk_again(chunk, head, S, M);
      }
    }
    Matrix dS = state(data_.d_S, n, head), dM = state(data_.d_M, n, head);
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      backward(*chunk, head, dS, dM);
    }
    if (data_.wants_initial_gradient) {
      put_state("d_S", n, head, dS);
      if (c_.momentum) {
        put_state("d_M", n, head, dM);
      }
    }
  }

  const MomentumDeltaRuleData& data_;
  const MomentumDeltaRuleCase& c_;
  Rounding rounding_;
  // Of numbers in units, powers of two that keep them away from the ends of float16's range.
  Format half_in_units_;
  uint64_t state_;  // of the generator of operands' errors
  Results results_;
};

}  // namespace

Format format_of(DType dtype) {
  return {-std::ilogb(unit_roundoff(dtype)), dtype == DType::kFloat16 ? 0x1p-24 : 0};
}

Results run_with_rounding(const MomentumDeltaRuleData& data, const Rounding& rounding,
                          uint64_t seed) {
  MDN_CHECK(rounding.chunk >= 1, "a chunk of {} tokens", rounding.chunk);
  MDN_CHECK((rounding.inputs.bits > 0) == (rounding.half.bits > 0), "operands half rounded");
  return Simulation(data, rounding, seed).run();
}

}  // namespace mdn::test
