"""Momentum DeltaNet's operators for PyTorch.

    import mdn
    o, S, M = mdn.momentum_delta_rule(q, k, v, alpha, mu, eta, beta)

The operators live in libmdn_ops.so, which `make build` puts into build/. It is looked for in the
file or folder that the environment variable MDN_LIBRARY names, then beside this file, then in
../../build.
"""

from mdn._library import library_path
from mdn.ops import (
    from_published_states,
    kimi_delta_rule,
    kimi_delta_rule_step,
    momentum_delta_rule,
    momentum_delta_rule_step,
    to_published_states,
)

__all__ = [
    "from_published_states",
    "kimi_delta_rule",
    "kimi_delta_rule_step",
    "library_path",
    "momentum_delta_rule",
    "momentum_delta_rule_step",
    "to_published_states",
]
