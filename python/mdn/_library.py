"""Finds and loads libmdn_ops.so, and gives tracing what only Python can express."""

import os
from pathlib import Path

import torch

_NAME = "libmdn_ops.so"


def _find() -> Path:
    package = Path(__file__).resolve().parent
    named = os.environ.get("MDN_LIBRARY")
    if named:
        path = Path(named)
        path = path / _NAME if path.is_dir() else path
        if not path.is_file():
            raise ImportError(f"MDN_LIBRARY is {named!r}, but there is no file {path}")
        return path
    places = [package / _NAME, package.parent.parent / "build" / _NAME]
    for path in places:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in places)
    raise ImportError(
        f"{_NAME} was not found (looked for {looked}); build it with `make build`, or set "
        "MDN_LIBRARY to the file or to its folder"
    )


library_path = _find()
"""The file that was loaded."""

torch.ops.load_library(library_path)


def _opaque_size():
    """A size that tracing learns at run time: how many bytes the forward pass saves is its
    backend's affair. C++ cannot say so, hence this stands in for the library's meta function."""
    context = torch.library.get_ctx()
    size = context.new_dynamic_size()
    # Dynamo first runs mdn::momentum_delta_rule as a whole, whose outputs do not have the size, and
    # would call that an error; the later trace, through autograd, sees and binds it.
    context._shape_env.ignorable_fresh_unbacked_symbols.append(size.node.expr)
    return size


def _forward_fake(
    q,
    k,
    v,
    alpha,
    mu,
    eta,
    beta,
    pi=None,
    initial_S=None,
    initial_M=None,
    cu_seqlens=None,
    scale=None,
    l2norm=False,
    save=False,
):
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = (sequences, v.shape[2], v.shape[3], q.shape[3])
    size = _opaque_size() if save and q.device.type != "meta" else 0
    return (
        v.new_empty(v.shape),
        alpha.new_empty(states),
        alpha.new_empty(states if mu is not None else 0),
        q.new_empty(size, dtype=torch.uint8),
    )


torch.library.register_fake(
    "mdn::momentum_delta_rule_forward", _forward_fake, allow_override=True
)
