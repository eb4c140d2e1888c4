"""The operators under Python names, and conversion of published states."""

import torch
from torch import Tensor

from mdn import _library  # noqa: F401  loads the operators


def momentum_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    mu: Tensor | None,
    eta: Tensor,
    beta: Tensor,
    pi: Tensor | None = None,
    initial_S: Tensor | None = None,
    initial_M: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    l2norm: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The momentum delta rule over whole sequences, with gradients.

    Per value head, with fast weights S and momentum M (K x V matrices), every token t does one step
    of gradient descent with momentum on |v_t - S^T k_t|^2 / 2:

        r_t = v_t - pi_t S^T k_t
        M  <- mu_t M - eta_t k_t r_t^T
        S  <- alpha_t S - beta_t M
        o_t = scale S^T q_t

    Args:
        q, k: [B, T, H, K] in float32, bfloat16 or float64 (the CPU's reference); on CUDA also
            float16.
        v: [B, T, HV, V] in q's dtype. HV is a multiple of H: value head j reads query/key head
            j // (HV // H).
        alpha, mu, eta, beta: gates, [B, T, HV], float32 (float64 with float64). Their values, not
            their logarithms; 0 is legal. mu None: 0, the gated delta rule; no M is kept then.
        pi: the prediction's scalar, as the gates; None: pi = alpha, as in the published model, and
            alpha's gradient contains pi's.
        initial_S, initial_M: states to continue from, [N, HV, V, K] in the gates' dtype (K
            contiguous: transposed against the formulas), both or neither; None: zeros. Without mu
            there is no initial_M.
        cu_seqlens: [N + 1] int64, with B = 1: sequence n is tokens cu_seqlens[n] to
            cu_seqlens[n + 1], with its own states. None: each row is a sequence, N = B. Keep it on
            the CPU, where checking it costs no synchronisation.
        scale: of the output; None: K ** -0.5.
        l2norm: q and k are divided by sqrt(sum(x^2) + 1e-6) inside.

    Returns:
        o [B, T, HV, V] in q's dtype; the final S and M, [N, HV, V, K] in the gates' dtype (without
        mu M is an empty tensor).

    Raises:
        RuntimeError: a shape, dtype or device that does not fit; the message names the argument,
            what it is and what it must be. Also for second derivatives, which do not exist.

    Non-contiguous arguments are copied.
    """
    return torch.ops.mdn.momentum_delta_rule(
        q,
        k,
        v,
        alpha,
        mu,
        eta,
        beta,
        pi=pi,
        initial_S=initial_S,
        initial_M=initial_M,
        cu_seqlens=cu_seqlens,
        scale=scale,
        l2norm=l2norm,
    )


def momentum_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    mu: Tensor | None,
    eta: Tensor,
    beta: Tensor,
    S: Tensor,
    M: Tensor | None,
    pi: Tensor | None = None,
    slots: Tensor | None = None,
    scale: float | None = None,
    l2norm: bool = False,
) -> Tensor:
    """One token for each of B sequences; the formulas of momentum_delta_rule, without gradients.

    Args:
        q, k: [B, H, K]; v: [B, HV, V]; alpha, mu, eta, beta, pi: [B, HV]; dtypes as there.
        S, M: states of all sequences, [slots, HV, V, K] in the gates' dtype, or float16 on a GPU
            (numbers past ±65504 are stored as ±65504), and contiguous: **updated in place**. mu and
            M are given together, or both are None.
        slots: [B] int64, the state that each row owns, none twice; a negative one marks a padding
            row, whose output is undefined. None: row b owns state b.
        scale, l2norm: as there.

    Returns:
        o [B, HV, V].
    """
    return torch.ops.mdn.momentum_delta_rule_step(
        q,
        k,
        v,
        alpha,
        mu,
        eta,
        beta,
        S,
        M,
        pi=pi,
        slots=slots,
        scale=scale,
        l2norm=l2norm,
    )


def kimi_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    initial_S: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    l2norm: bool = False,
) -> tuple[Tensor, Tensor]:
    """The delta rule of Kimi Delta Attention over whole sequences, with gradients: a gated delta
    rule whose decay alpha is one number a key channel.

        S  <- diag(alpha_t) S
        r_t = v_t - S^T k_t
        S  <- S + beta_t k_t r_t^T
        o_t = scale S^T q_t

    Args:
        alpha: [B, T, HV, K], values (not logarithms), float32 (float64 with float64); 0 is legal.
        beta: [B, T, HV], of alpha's dtype.
        q, k, v, initial_S, cu_seqlens, scale, l2norm: as in momentum_delta_rule.

    Returns:
        o [B, T, HV, V] in q's dtype; the final S [N, HV, V, K] in the gates' dtype.

    Raises:
        RuntimeError: as momentum_delta_rule.
    """
    return torch.ops.mdn.kimi_delta_rule(
        q,
        k,
        v,
        alpha,
        beta,
        initial_S=initial_S,
        cu_seqlens=cu_seqlens,
        scale=scale,
        l2norm=l2norm,
    )


def kimi_delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    S: Tensor,
    slots: Tensor | None = None,
    scale: float | None = None,
    l2norm: bool = False,
) -> Tensor:
    """One token for each of B sequences; the formulas of kimi_delta_rule, without gradients.

    Args:
        q, k: [B, H, K]; v: [B, HV, V]; alpha: [B, HV, K]; beta: [B, HV]; dtypes as there.
        S: states of all sequences, [slots, HV, V, K], contiguous: **updated in place**.
        slots, scale, l2norm: as in momentum_delta_rule_step.

    Returns:
        o [B, HV, V].
    """
    return torch.ops.mdn.kimi_delta_rule_step(
        q, k, v, alpha, beta, S, slots=slots, scale=scale, l2norm=l2norm
    )


def from_published_states(S: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """States [N, HV, K, V], as the published code keeps them, in the layout [N, HV, V, K] of the
    operators here (float32, or float64 where they are)."""
    dtype = torch.float64 if S.dtype == torch.float64 else torch.float32
    return tuple(x.transpose(-1, -2).to(dtype).contiguous() for x in (S, M))


def to_published_states(S: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """The way back: [N, HV, V, K] to [N, HV, K, V]."""
    return tuple(x.transpose(-1, -2).contiguous() for x in (S, M))
