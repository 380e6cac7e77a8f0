"""Matrices of the chosen experts, in the ways that they are taken, and shapes of their products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import CHOICES, EXPERTS, FEATURES, HIDDEN, Mixture


class Taken(Mixture):
    """A subclass says how matrices are taken: `(tokens, choices, out, in)`."""

    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        return matrices[chosen]

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hidden = torch.einsum("td,tkhd->tkh", x, self.take(self.up, chosen)).relu()
        out = torch.einsum("tkh,tkdh->tkd", hidden, self.take(self.down, chosen))
        return torch.einsum("tk,tkd->td", weights, out)


class BySelection(Taken):
    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        rows = torch.index_select(matrices, 0, chosen.reshape(-1))
        return rows.view(*chosen.shape, *matrices.shape[1:])


class ByEmbedding(Taken):
    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        rows = F.embedding(chosen, matrices.view(EXPERTS, -1))
        return rows.unflatten(-1, matrices.shape[1:])


class ByGather(Taken):
    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        index = chosen.reshape(-1, 1, 1).expand(-1, *matrices.shape[1:])
        return matrices.gather(0, index).view(*chosen.shape, *matrices.shape[1:])


class AlongDimension(Taken):
    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        rows = torch.take_along_dim(matrices, chosen.reshape(-1, 1, 1), 0)
        return rows.view(*chosen.shape, *matrices.shape[1:])


class BySlices(Taken):
    def take(self, matrices: Tensor, chosen: Tensor) -> Tensor:
        return matrices[chosen, :, :]


class ChoiceByChoice(Mixture):
    """One choice after the other, added up."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        out = torch.zeros_like(x)
        for k in range(self.choices):
            hidden = torch.einsum("td,thd->th", x, self.up[chosen[:, k]]).relu()
            mixed = torch.einsum("th,tdh->td", hidden, self.down[chosen[:, k]])
            out = out + mixed * weights[:, k, None]
        return out


class InOut(Mixture):
    """Matrices `(in, out)`, and a product that broadcasts tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(self.up.detach().mT.contiguous())
        self.w2 = nn.Parameter(self.down.detach().mT.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.unsqueeze(0) @ self.w1 + self.up.mean(-1).unsqueeze(1))
        out = hidden @ self.w2
        return (out * self.weights(x).t().unsqueeze(-1)).sum(0)


class AddedByBaddbmm(InOut):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unsqueeze(0).expand(EXPERTS, -1, -1)
        hidden = torch.baddbmm(self.gate_up_bias.unsqueeze(1)[..., :HIDDEN], tokens, self.w1)
        out = torch.baddbmm(self.down_bias.unsqueeze(1), F.gelu(hidden), self.w2)
        return torch.einsum("etd,te->td", out, self.weights(x))


class AddedByAddmm(InOut):
    """Each expert by `addmm`, of stacked parameters."""

    def forward(self, x: Tensor) -> Tensor:
        outs: list[Tensor] = []
        for e in range(EXPERTS):
            hidden = torch.addmm(self.gate_up_bias[e, :HIDDEN], x, self.w1[e])
            outs.append(
                torch.addmm(self.down_bias[e], F.gelu(hidden, approximate="tanh"), self.w2[e])
            )
        return torch.einsum("etd,te->td", torch.stack(outs), self.weights(x))


class LinearOfTransposed(InOut):
    """`F.linear` with parameters that are kept the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        weights, out = self.weights(x), torch.zeros_like(x)
        for e in range(EXPERTS):
            hidden = F.relu(F.linear(x, self.w1[e].t())) ** 2
            out = out + weights[:, e : e + 1] * F.linear(hidden, self.w2[e].permute(1, 0))
        return out


class SquareMatrix(Mixture):
    """One product and no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(self.up.detach()[:, :FEATURES].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        out = torch.einsum("td,efd->tef", x, self.square)
        return torch.einsum("te,tef->tf", self.weights(x), out)


class MixtralBmm(Mixture):
    """Tokens as rows of a product for each choice: `(tokens * choices, 1, features)`."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        tokens = x.repeat_interleave(CHOICES, 0).unsqueeze(1)
        flat = chosen.reshape(-1)
        gate, up = (tokens @ self.gate_up[flat].mT).chunk(2, -1)
        out = (F.silu(gate) * up) @ self.down[flat].mT
        return (out.view(-1, CHOICES, FEATURES) * weights.unsqueeze(-1)).sum(1)


class ProductOfThree(Mixture):
    """Weights, hidden features and the last matrices in one einsum."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.einsum("td,ehd->teh", x, self.up).relu()
        return torch.einsum("te,teh,edh->td", self.weights(x), hidden, self.down)


class ProductOfThreeInSequences(Mixture):
    """Operands in another order; tokens in two dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(2, -1, FEATURES)
        weights = self.weights(x.reshape(-1, FEATURES)).view(2, -1, EXPERTS)
        hidden = torch.einsum("bsd,ehd->bseh", x, self.up).square()
        return torch.einsum("bseh,edh,bse->bsd", hidden, self.down, weights)


class ProductOfThreeTaken(Taken):
    """Of the chosen matrices."""

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        hidden = torch.einsum("td,tkhd->tkh", x, self.take(self.up, chosen)).relu()
        return torch.einsum("tk,tkh,tkdh->td", weights, hidden, self.take(self.down, chosen))


GATHERED: list[type[Mixture]] = [
    Taken, BySelection, ByEmbedding, ByGather, AlongDimension, BySlices, ChoiceByChoice,
    InOut, AddedByBaddbmm, AddedByAddmm, LinearOfTransposed, SquareMatrix, MixtralBmm,
    ProductOfThree, ProductOfThreeInSequences, ProductOfThreeTaken,
]  # fmt: skip
