"""`fuser::flex_attention`: PyTorch's FlexAttention as one operator that Inductor leaves closed.

Inductor's C++ template for it takes only inputs that lie in memory as they are declared and stands
alone in its kernel: a projection above it, a product below it or a constant beside it fail to
compile. Compiled by itself, through the public function, it meets none of them; and should it
fail all the same, the operator computes the same attention in blocks.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import flex_attention as public

from fuser.distinct import distinct
from fuser.errors import FuserWarning
from fuser.graph.program import Program
from fuser.specs import AttentionSpec
from fuser.torch_private import outermost

from . import blocks
from .chunked import chunked_attention
from .mask import MaskFacts, MaskKind

Layout = tuple[tuple[int, ...], tuple[int, ...], torch.dtype]
"""Sizes, strides and dtype of a tensor."""
_numbers = count()
_failed: set[tuple[Any, ...]] = set()


@torch.library.custom_op("fuser::flex_attention", mutates_args=(), device_types="cpu")
def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    mask: str,
    width: int,
    compiled: bool,
) -> Tensor:
    """Attention as a spec says, with scores in fp32 and no gradient.

    Args:
        q: `(B, H, Sq, D)`.
        k: `(B, Hkv, Sk, D)`.
        v: `(B, Hkv, Sk, Dv)`.
        captured: 0-d, or broadcasting against `(B, H, Sq, Sk)`.
        spec: text of an `AttentionSpec` with one product, no sink and no dropout, whose
            probabilities are used as they are.
        mask: a `MaskKind` that follows on the spec's scores; `none` where nothing is to be skipped.
        width: of the mask, as in `MaskFacts`.
        compiled: generate code for it; otherwise it is computed in blocks, with plain PyTorch.

    Returns:
        `(B, H, Sq, Dv)` in the dtype of v, dimensions in memory as those of q.
    """
    facts = MaskFacts(MaskKind(mask), True, width)
    found = _attend(q, k, v, captured, spec, facts) if compiled else None
    return _like(_in_blocks(q, k, v, captured, spec, facts) if found is None else found, q)


OPERATOR = torch.ops.fuser.flex_attention.default


@flex_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    captured: Sequence[Tensor],
    spec: str,
    mask: str,
    width: int,
    compiled: bool,
) -> Tensor:
    return _empty(v, q)


def _empty(v: Tensor, q: Tensor) -> Tensor:
    """The result: dense, dimensions of larger stride in q first."""
    order = sorted(range(4), key=lambda d: -q.stride(d))
    sizes = [*q.shape[:3], v.shape[-1]]
    dense = v.new_empty([sizes[d] for d in order])
    return dense.permute([order.index(d) for d in range(4)])


def _like(found: Tensor, q: Tensor) -> Tensor:
    wanted = _empty(found, q)
    return found if found.stride() == wanted.stride() else wanted.copy_(found)


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor], text: str, facts: MaskFacts
) -> Tensor:
    """The same in plain PyTorch; a structured mask is made, and applied last."""
    if facts.kind in blocks.STRUCTURED:
        spec = AttentionSpec.from_text(text)
        i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
        keep = blocks.keeps(facts)(i.new_zeros(()), i.new_zeros(()), i, j)
        captured = [*captured, keep[None, None]]
        score = spec.score.masked(f"c{spec.captured}")
        text = replace(spec, score=score, captured=len(captured)).to_text()
    return chunked_attention([q], [k], v, captured, None, text)


def _layout(x: Tensor) -> Layout:
    return tuple(x.shape), x.stride(), x.dtype


def _attend(
    q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor], spec: str, facts: MaskFacts
) -> Tensor | None:
    """The public function, compiled for these operands; None if that failed, now or before."""
    key = spec, facts, tuple(map(_layout, (q, k, v, *captured)))
    if key in _failed:
        return None
    try:
        with outermost(), torch.autocast("cpu", enabled=False):
            return _kernel(*key)(q, k, v, captured)
    except Exception as error:
        _failed.add(key)
        first = next(iter(str(error).splitlines()), "")
        warnings.warn(
            f"FlexAttention did not compile, so an attention is computed in blocks instead: "
            f"{type(error).__name__}: {first} (to leave it to the inner backend, compile with "
            f'options={{"fuser.patterns": ["-attention"]}})',
            FuserWarning,
            stacklevel=2,
        )
        return None


@lru_cache(maxsize=256)
def _kernel(spec: str, facts: MaskFacts, layouts: tuple[Layout, ...]) -> Callable[..., Tensor]:
    """The public function, compiled for one spec and these layouts of q, k, v and captured."""
    q, k, _, *captured = layouts
    program = AttentionSpec.from_text(spec).score.widened()
    names = [str(n.target) for n in program.graph.nodes if n.op == "placeholder"]
    read = [int(name[1:]) for name in names if name != "s0"]
    score_mod = _score_mod(program, {f"c{i}": captured[i] for i in read})
    structured = facts.kind in blocks.STRUCTURED
    table = blocks.block_mask(facts, q[0][2], k[0][2]) if structured else None

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask | None, tensors: Any) -> Any:
        def program(score: Tensor, *position: Tensor) -> Tensor:
            return score_mod(score, *position, *tensors)

        return public(q, k, v, program, mask, scale=1.0, enable_gqa=q.shape[1] != k.shape[1])

    compiled = torch.compile(distinct(attend, str(next(_numbers))), dynamic=False, fullgraph=True)

    def kernel(q: Tensor, k: Tensor, v: Tensor, captured: Sequence[Tensor]) -> Tensor:
        tensors = [captured[i].contiguous().squeeze() for i in read]
        return compiled(q, k, v, table, tensors)

    return kernel


def _score_mod(program: Program, captured: Mapping[str, Layout]) -> GraphModule:
    """`(score, b, h, q_idx, kv_idx, *captured) -> score` for one position, all 0-d, in fp32.

    What is captured has no dimension of size one.
    """
    graph, made = Graph(), dict[Node, Node]()
    score = graph.placeholder("score")
    position = [graph.placeholder(name) for name in ("b", "h", "q_idx", "kv_idx")]
    here: dict[str, Node] = {}
    for name, (shape, _, dtype) in captured.items():
        tensor = graph.placeholder(name)
        index = tuple(position[d - len(shape)] for d in range(len(shape)) if shape[d] != 1)
        if index:
            tensor = graph.call_function(operator.getitem, (tensor, index))
        if dtype in (torch.bfloat16, torch.float16):
            tensor = graph.call_method("to", (tensor,), {"dtype": torch.float32})
        here[name] = tensor
    for node in program.graph.nodes:
        if node.op == "placeholder":
            made[node] = score if node.target == "s0" else here[str(node.target)]
        elif node.op != "output":
            args, kwargs = (map_arg(a, made.__getitem__) for a in (node.args, node.kwargs))
            made[node] = graph.create_node(node.op, node.target, args, kwargs)
        else:
            result = made[node.args[0]]  # type: ignore[index]
            graph.output(graph.call_method("to", (result,), {"dtype": torch.float32}))
    return GraphModule({}, graph)
