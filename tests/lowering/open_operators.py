"""Opens the operators of generated kernels as AOTAutograd does on a GPU, with none present.

Run as a process of its own, since what is interpreted never opens. Prints JSON: by case, the
kernels that are launched, in order. Tensors are fake: those of a single operator are on `cuda`;
where autograd takes a part they are on `meta`, as a torch without CUDA has no engine for `cuda`.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._functorch.aot_autograd import aot_function
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from fuser.lowering.attention.generated.build import build
from fuser.lowering.attention.generated.catalogue import builtin
from fuser.lowering.attention.generated.config import choose
from fuser.lowering.triton.launch import TARGETS
from fuser.specs import AttentionSpec
from tests.lowering.generated import spec

HALF, FP32 = torch.bfloat16, torch.float32
Launch = dict[str, Any]


def pretend() -> None:
    """There is one H100, as far as anyone asks without launching."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = TARGETS["sm_90"]
    found = SimpleNamespace(
        major=9, minor=0, multi_processor_count=target.processors, warp_size=target.lanes,
        shared_memory_per_block_optin=target.shared,
    )  # fmt: skip
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32), get_current_device=lambda: 0
    )
    torch.cuda.get_device_properties = lambda device=None: found  # type: ignore[assignment]
    triton.runtime.driver.set_active(driver)  # type: ignore[arg-type]


def symbol(env: ShapeEnv, hint: int) -> Any:
    """A size that is not known while compiling."""
    source = ConstantSource(f"size{len(env.var_to_val)}")
    made = env.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC)
    return env.create_symintnode(made, hint=hint, source=source)


def trained(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    told: Callable[[GraphModule], list[Launch]] | None = None,
    **more: Any,
) -> tuple[dict[str, list[Launch]], list[Tensor]]:
    """Launches of the forward and the backward of a function, and its results.

    Args:
        function: of tensors; gives one or several.
        inputs: fake ones, or on no device.
        told: what is told of a graph; its launches, where nothing else is given.
        more: for `aot_function`.
    """
    found: dict[str, list[Launch]] = {}

    def keep(which: str) -> Callable[..., Any]:
        def compiler(graph: GraphModule, _: Any) -> Any:
            found[which] = (told or launches)(graph)
            return graph

        return compiler

    made = aot_function(function, keep("forward"), keep("backward"), **more)(*inputs)
    results = [made] if isinstance(made, Tensor) else [*made]
    leaves = [x for x in inputs if x.requires_grad]
    torch.autograd.grad(results, leaves, [torch.empty_like(y) for y in results])
    return found, results


def operands(
    shapes: Sequence[Sequence[int]], symbols: Sequence[int] = (), order: Sequence[int] = ()
) -> tuple[FakeTensorMode, list[Tensor]]:
    """Tensors in bf16 that want a gradient, and the mode that they are of.

    Args:
        shapes: of them.
        symbols: sizes that are symbols.
        order: of the dimensions of the first one in memory; empty where it is contiguous.
    """
    env = ShapeEnv()
    known = {size: symbol(env, size) for size in symbols}
    mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
    with mode:
        sized = [[known.get(s, s) for s in shape] for shape in shapes]
        x = [torch.empty(s, dtype=HALF, device="meta") for s in sized]
        if order:
            back = [order.index(d) for d in range(len(order))]
            x[0] = x[0].permute(tuple(order)).contiguous().permute(back)
        return mode, [t.requires_grad_() for t in x]


class Case:
    """Fake operands of one attention; the numbers of keys and batches, and of heads and queries
    that equal those of keys, are symbols where they are `dynamic`."""

    def __init__(
        self,
        of: AttentionSpec,
        *captured: Sequence[int],
        captured_dtype: torch.dtype = HALF,
        batch: int = 8,
        heads: int = 16,
        kv: int = 16,
        rows: int = 256,
        keys: int = 256,
        device: str = "cuda",
        dynamic: bool = False,
        atomics: bool = False,
    ) -> None:
        self.atomics = atomics
        self.shape_env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.shape_env)
        self.device = torch.device(device, 0 if device == "cuda" else None)
        self.text = of.to_text()
        if dynamic:
            length, batch = symbol(self.shape_env, keys), symbol(self.shape_env, batch)
            rows, keys = length if rows == keys else rows, length
            heads, kv = (symbol(self.shape_env, heads),) * 2 if heads == kv else (heads, kv)
        self.rows = (batch, heads, rows)
        self.q = self.tensor(*self.rows, 64)
        self.k, self.v = (self.tensor(batch, kv, keys, 64) for _ in range(2))
        self.captured = [self.tensor(*shape, dtype=captured_dtype) for shape in captured]
        self.seed = self.tensor(1, dtype=torch.int64) if of.dropout else None

    def tensor(self, *shape: Any, dtype: torch.dtype = HALF) -> Tensor:
        with self.mode:
            return torch.empty(shape, dtype=dtype, device=self.device)

    @property
    def inputs(self) -> list[Tensor]:
        return [self.q, self.k, self.v, *self.captured, *([] if self.seed is None else [self.seed])]

    def call(self, name: str, inputs: Sequence[Tensor], *first: Any, **more: Any) -> Any:
        """One of the operators; what its schema has beside these arguments is off."""
        function = getattr(torch.ops.fuser, name).default
        count = len(self.captured)
        given = {
            "q": [inputs[0]], "k": [inputs[1]], "v": inputs[2],
            "captured": [*inputs[3 : 3 + count]],
            "seed": inputs[3 + count] if len(inputs) > 3 + count else None,
            "spec": self.text, "origin": "a test", "atomics": self.atomics, **more,
        }  # fmt: skip
        rest = [given.get(a.name, False) for a in function._schema.arguments[len(first) :]]
        return function(*first, *rest)

    def forward(self) -> list[Launch]:
        """Launches of the operator alone."""
        return self._opened(lambda *x: self.call("generated_attention", x), self.inputs)

    def backward(self) -> list[Launch]:
        """Launches of the operator that computes gradients, alone."""
        grad, out = self.tensor(*self.rows, 64), self.tensor(*self.rows, 64)
        saved = [grad, out, *(self.tensor(*self.rows, dtype=FP32) for _ in range(2))]
        needs = [x.is_floating_point() for x in (self.q, self.k, self.v, *self.captured)]

        def function(*x: Tensor) -> Any:
            return self.call("generated_attention_backward", x[4:], *x[:4], needs=needs)

        return self._opened(function, [*saved, *self.inputs])

    def training(self) -> dict[str, list[Launch]]:
        """Launches of forward and backward, as autograd puts them together."""

        def function(*x: Tensor) -> Tensor:
            return self.call("generated_attention", x)[0]

        inputs = [x.requires_grad_(x.is_floating_point()) for x in self.inputs]
        with self.mode:
            return trained(function, inputs)[0]

    def _opened(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Launch]:
        graphs: list[GraphModule] = []

        def keep(graph: GraphModule, _: Any) -> Any:
            graphs.append(graph)
            return graph

        with torch.no_grad(), self.mode:
            aot_function(function, keep)(*inputs)
        (graph,) = graphs
        return launches(graph)


def launches(graph: GraphModule) -> list[Launch]:
    """The kernels of a graph; an operator of ours that is still closed stands by its own name."""
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    names = ("triton", "fuser")
    return [_launch(node) for node in calls if any(name in str(node.target) for name in names)]


def _launch(node: Node) -> Launch:
    if node.target is not torch.ops.higher_order.triton_kernel_wrapper_functional:
        return {"kernel": str(node.target)}
    kernel: Any = kernel_side_table.get_kernel(node.kwargs["kernel_idx"])  # type: ignore[arg-type]
    arguments: Any = node.kwargs["kwargs"]
    symbolic = [n for n, x in arguments.items() if isinstance(x, Node) and not _is_tensor(x)]
    return {
        "kernel": kernel.fn.__name__,
        "writes": sorted(node.kwargs["tensors_to_clone"]),  # type: ignore[arg-type]
        "symbolic": sorted(symbolic),
    }


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def cache_keys() -> list[str]:
    """What Triton keeps a kernel under on disk, for the same kernel of two regions."""
    entry = next(builtin())
    config = choose(entry.stage, entry.layout, TARGETS["sm_90"], rows=entry.rows)
    return [
        build(entry.layout, entry.stage, entry.arguments, config, origin).function().cache_key
        for origin in ("attention.softmax at model.py:3", "attention.sdpa at other_model.py:123")
    ]


def plus(s0: Tensor, c0: Tensor) -> Tensor:
    return s0 * 0.125 + c0


def hidden(s0: Tensor, c0: Tensor) -> Tensor:
    return torch.where(c0, s0 * 0.125, -math.inf)


def main() -> None:
    pretend()
    causal = spec(mask=lambda iq, ik: ik <= iq, dtype=HALF)
    biased, dropped = spec(plus, dtype=HALF), spec(dropout=0.1, dtype=HALF)
    masked = spec(hidden, dtype=HALF)
    bias, mask = (1, 16, 256, 256), (8, 1, 2048, 2048)
    found = {
        "forward": Case(causal).forward(),
        "forward, grouped": Case(causal, kv=4).forward(),
        "decoding": Case(causal, batch=1, kv=4, rows=1, keys=8192).forward(),
        "backward": Case(causal).backward(),
        "backward, bias": Case(biased, bias).backward(),
        "training": Case(causal, device="meta").training(),
        "training, bias": Case(biased, bias, device="meta").training(),
        "training, dropout": Case(dropped, device="meta").training(),
        "table": Case(masked, mask, rows=2048, keys=2048, captured_dtype=torch.bool).forward(),
        "backward, table": Case(
            masked, mask, rows=2048, keys=2048, captured_dtype=torch.bool
        ).backward(),
        "backward, atomics": Case(causal, atomics=True).backward(),
        "dynamic forward": Case(causal, dynamic=True).forward(),
        "dynamic forward, grouped": Case(causal, kv=4, dynamic=True).forward(),
        "dynamic decoding": Case(causal, dynamic=True, batch=1, kv=4, rows=1, keys=8192).forward(),
        "dynamic backward": Case(causal, dynamic=True).backward(),
        "dynamic training": Case(causal, device="meta", dynamic=True).training(),
        "cache keys": cache_keys(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your compiler for AOTAutograd")
        main()
