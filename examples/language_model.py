"""A language model of transformers: trained, then decoding, with eager and fp64 beside it.

A small Qwen3 is made from its configuration, with random weights: grouped queries, norms of queries
and keys, rotary embeddings, SwiGLU, and a vocabulary so large that its logits are most of a step's
memory. It is asked for its loss alone, so that nobody else reads the logits, and the loss that
transformers computes becomes one operator that never has all of them.

Shown are what is proved and what of it pays on this machine, the loss and all gradients of a step
by their distance from fp64, a few steps of training, and tokens that are decoded with a static
cache in one graph. Speed is not the point here: `fuser.inner=aot_eager` has no code generated.

    python -m examples.language_model
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fuser
from fuser.precision import DoublePrecision

LAYERS, VOCABULARY = 2, 16_384
BATCH, POSITIONS = 2, 256
PROMPT, TOKENS, ROOM = 24, 12, 48
STEPS = 4
OPTIONS = {"fuser.inner": "aot_eager"}
ALWAYS = {**OPTIONS, "fuser.policy": "always"}
FACTOR = 3.0
"""At most so many times eager's own error."""


def make() -> nn.Module:
    """The model, in fp32. Its attention is the spelled one: `eager` in transformers' words."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    return Qwen3ForCausalLM(config)


class Loss(nn.Module):
    """What a trainer wants of a model: its own loss, and no logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """The mean loss of the next token, of ids (B, S)."""
        return self.model(input_ids=ids, labels=ids, use_cache=False).loss


class Decode(nn.Module):
    """One step of decoding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, cache: Any) -> Tensor:
        """Scores (B, V) of the token behind ids (B, S), which are added to the cache."""
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]


def text() -> Tensor:
    """Ids (B, S) in which there is something to learn: they count, from anywhere."""
    start = torch.randint(0, VOCABULARY, (BATCH, 1), generator=torch.Generator().manual_seed(1))
    return (start + torch.arange(POSITIONS)) % VOCABULARY


def coverage(loss: nn.Module, ids: Tensor) -> None:
    """Says what of a training step is proved, and what is rewritten because it pays here."""
    proved = fuser.explain(loss, ids, options=ALWAYS)
    # a norm of what goes into a layer, its MLP, its queries and its keys, and the last one
    proved.expect(attention=LAYERS, norm=4 * LAYERS + 1, activation=LAYERS, loss=1)
    families = ("attention", "norm", "activation", "loss")
    print("proved:", ", ".join(f"{proved.count(f)} {f}" for f in families))
    paying = fuser.explain(loss, ids, options=OPTIONS)
    paying.expect(attention=LAYERS, loss=1)
    print("rewritten by default here:", ", ".join(f"{paying.count(f)} {f}" for f in families))
    for rewrite in paying.rewritten:
        print(f"  {rewrite.pattern} by {rewrite.lowering}")


def outcome(step: Any, model: nn.Module, ids: Tensor) -> list[Tensor]:
    """The loss and the gradients of all parameters."""
    loss = step(ids)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


def error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of all, over the largest number of its tensor."""
    pairs = zip(found, exact, strict=True)
    return max(float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs)


def gradients(loss: nn.Module, ids: Tensor) -> None:
    """Compares the loss and the gradients of one step with those in fp64."""
    wide = copy.deepcopy(loss).double()
    with DoublePrecision():  # transformers casts to fp32 in norms, softmax and loss
        exact = outcome(wide, wide, ids)
    eager = error(outcome(loss, loss, ids), exact)
    for name, options in (("default", OPTIONS), ("always", ALWAYS)):
        compiled = torch.compile(loss, backend="fuser", options=options)
        ours = error(outcome(compiled, loss, ids), exact)
        print(f"a step, policy {name}: fuser is {ours:.1e} from fp64, eager {eager:.1e}")
        assert ours <= FACTOR * eager + 1e-7


def train(loss: nn.Module, ids: Tensor, compiled: bool) -> list[float]:
    """The losses of some steps, each of a model of its own."""
    loss = copy.deepcopy(loss)
    step = torch.compile(loss, backend="fuser", options=OPTIONS) if compiled else loss
    optimiser = torch.optim.AdamW(loss.parameters(), lr=1e-3)
    losses: list[float] = []
    for _ in range(STEPS):
        found = step(ids)
        optimiser.zero_grad()
        found.backward()
        optimiser.step()
        losses.append(found.item())
    return losses


def decode(model: nn.Module, step: Any, prompt: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens (B, T) after a prompt (B, S), and the scores (B, T, V) they had.

    The prompt goes through the model in eager, as transformers does it, since that makes the cache;
    then each token is one call of `step`.
    """
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    scores = [Decode(model)(prompt, cache)]
    for _ in range(TOKENS - 1):
        scores.append(step(scores[-1].argmax(-1, keepdim=True), cache))
    return torch.stack([each.argmax(-1) for each in scores], 1), torch.stack(scores, 1)


@torch.no_grad()
def generation(model: nn.Module, prompt: Tensor) -> None:
    """Decodes in eager, compiled and in fp64: the same tokens, from scores as near to fp64."""
    from transformers import StaticCache

    step, wide = Decode(model), copy.deepcopy(model).double()
    cache = StaticCache(config=model.config, max_cache_len=ROOM)
    step(prompt, cache)
    fuser.explain(step, prompt[:, :1], cache, options=ALWAYS).expect(attention=LAYERS)
    compiled = torch.compile(step, backend="fuser", options=ALWAYS, fullgraph=True)
    decode(model, compiled, prompt)
    with torch.compiler.set_stance("fail_on_recompile"):
        tokens, scores = decode(model, compiled, prompt)
    usual, eager = decode(model, step, prompt)
    with DoublePrecision():
        _, exact = decode(wide, Decode(wide), prompt)
    ours, theirs = error([scores], [exact]), error([eager], [exact])
    print(f"decoded {tokens.shape[1]} tokens in one graph: {tokens[0].tolist()}")
    print(f"their scores: fuser is {ours:.1e} from fp64, eager {theirs:.1e}")
    assert torch.equal(tokens, usual)
    assert ours <= FACTOR * theirs + 1e-7


def main() -> None:
    model, ids = make(), text()
    loss = Loss(model).train()
    coverage(loss, ids)
    gradients(loss, ids)
    eager, compiled = (train(loss, ids, each) for each in (False, True))
    print("losses in eager:", " ".join(f"{each:.4f}" for each in eager))
    print("and compiled:   ", " ".join(f"{each:.4f}" for each in compiled))
    torch.testing.assert_close(torch.tensor(compiled), torch.tensor(eager), rtol=1e-4, atol=1e-4)
    generation(model.eval(), ids[:, :PROMPT])


if __name__ == "__main__":
    main()
