"""What resembles a linear layer's cross-entropy and may not be rewritten, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forms import CLASSES, FEATURES, Head


@dataclass(frozen=True)
class LookAlike:
    """A module, and why it stays as it is; "" where nobody would take it for a loss."""

    module: type[Head]
    reason: str = ""


def _flat(logits: Tensor, target: Tensor, **how: object) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, CLASSES), target.reshape(-1), **how)  # type: ignore[arg-type]


class LogitsReturned(Head):
    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lm_head(x)
        return _flat(logits, target), logits


class LogitsCounted(Head):
    """Accuracy beside the loss."""

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lm_head(x)
        return _flat(logits, target), (logits.argmax(-1) == target).float().mean()


class OverRows(Head):
    """The softmax runs over tokens: as many as there are classes."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = x[:, :1] * torch.linspace(-1, 1, CLASSES, dtype=x.dtype)[:, None]
        target = target[:, :1].expand(-1, CLASSES).clamp(min=0)
        return F.cross_entropy(self.lm_head(x), target)  # (batch, tokens, classes)


class BiasOfRows(Head):
    """Hidden states are the matrix: each of the head's rows is classified among tokens."""

    bias = True

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = x[0, :1] * torch.linspace(-1, 1, CLASSES, dtype=x.dtype)[:, None]
        return F.cross_entropy(self.lm_head(x).t(), torch.arange(CLASSES))


class WeightsOfClasses(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return _flat(self.lm_head(x), target, weight=torch.linspace(1, 2, CLASSES, dtype=x.dtype))


class Probabilities(Head):
    """A teacher's."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        teacher = F.one_hot(target.clamp(min=0), CLASSES).to(x.dtype).mul(0.8).add(0.2 / CLASSES)
        return F.cross_entropy(self.lm_head(x).view(-1, CLASSES), teacher.view(-1, CLASSES))


class SoftmaxBetween(Head):
    """A mistake that is often made."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return _flat(self.lm_head(x).softmax(-1), target)


class LogSoftmaxOverTokens(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = self.lm_head(x).log_softmax(1)
        return F.nll_loss(scores.view(-1, CLASSES), target.view(-1))


class Dropout(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return _flat(F.dropout(self.lm_head(x), 0.3, True), target)


class NoLogSoftmax(Head):
    """`nll_loss` of logits."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(self.lm_head(x).view(-1, CLASSES), target.view(-1))


class ClassesCut(Head):
    """A vocabulary that was padded."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)[..., : CLASSES - 2]
        target = target.clamp(max=CLASSES - 3)
        return F.cross_entropy(logits.reshape(-1, CLASSES - 2), target.view(-1))


class ClassesMasked(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        never = torch.arange(CLASSES) == 17
        return _flat(self.lm_head(x).masked_fill(never, -1e4), target)


class Written(Head):
    """A class is ruled out in place, which a view of the logits sees."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        flat = logits.view(-1, CLASSES)
        logits[..., 17] = -1e4
        return F.cross_entropy(flat, target.view(-1))


class RowsPicked(Head):
    """By a table, twice the same."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        rows = torch.tensor([0, 0, 3, 5])
        return F.cross_entropy(self.lm_head(x)[:, rows].transpose(1, 2), target[:, rows])


class RowScales(Head):
    """Another temperature for each token."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return _flat(self.lm_head(x) * x[..., :1].exp(), target)


class TwoHeads(Head):
    """A mixture of two products."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return _flat(self.lm_head(x) + self.other(x), target)


class Focal(Head):
    """The loss is weighted by itself."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        scores = logits.log_softmax(-1)
        each = scores.gather(-1, target.clamp(min=0)[..., None])
        return -(each * (1 - scores.exp().gather(-1, target.clamp(min=0)[..., None]))).mean()


class NoProduct(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(x.transpose(1, 2), target.clamp(max=FEATURES - 1))


class ZLossOfOthers(Head):
    """Of all rows, while the loss is of the shifted ones."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        loss = _flat(logits[:, :-1], target[:, 1:])
        return loss + 0.01 * logits.logsumexp(-1).square().mean()


class OtherDimension(Head):
    """logsumexp over tokens, less a target's logit."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        picked = logits.gather(-1, target.clamp(min=0)[..., None]).squeeze(-1)
        return (logits.logsumexp(1).mean(-1, keepdim=True) - picked).mean()


class OtherDimensionOfOneSize(Head):
    """The same, with as many tokens as classes."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = x[:, :1] * torch.linspace(-1, 1, CLASSES, dtype=x.dtype)[:, None]
        target = target[:, :1].expand(-1, CLASSES).clamp(min=0)
        logits = self.lm_head(x)
        return (logits.logsumexp(1) - logits.gather(-1, target[..., None]).squeeze(-1)).mean()


class CountsOn(Head):
    """`take_along_dim` takes the class after the last one for the first one."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x).log_softmax(-1)
        beyond = (target.clamp(min=0) + CLASSES - 1)[..., None]
        return -torch.take_along_dim(logits, beyond, -1).squeeze(-1).mean()


LOOKALIKES = [
    LookAlike(LogitsReturned, "the logits are used elsewhere: returned"),
    LookAlike(LogitsCounted, "the logits are used elsewhere, by `argmax`"),
    LookAlike(OverRows, "the loss runs over another axis than the one that the matrix gives"),
    LookAlike(BiasOfRows, "logits are combined with a tensor that differs between rows"),
    LookAlike(WeightsOfClasses, "classes have weights"),
    LookAlike(Probabilities, "its targets are probabilities of classes"),
    LookAlike(SoftmaxBetween, "`softmax` comes first"),
    LookAlike(LogSoftmaxOverTokens, "log_softmax runs over another axis than the classes"),
    LookAlike(Dropout, "dropout stands between"),
    LookAlike(NoLogSoftmax, "what it takes is not made by log_softmax"),
    LookAlike(ClassesCut, "classes are cut off from the logits"),
    LookAlike(ClassesMasked, "logits are combined with a tensor that differs between classes"),
    LookAlike(Written, "the logits are used elsewhere, by `setitem`"),
    LookAlike(RowsPicked, "rows of logits are picked other than by slices"),
    LookAlike(RowScales, "logits are combined with a tensor that differs between rows"),
    LookAlike(TwoHeads, "logits are made of several products"),
    LookAlike(Focal, "a part of the loss is used elsewhere, by `exp`"),
    LookAlike(NoProduct, "they are an input of this graph"),
    LookAlike(ZLossOfOthers, "the logits are used elsewhere, by `logsumexp`"),
    LookAlike(CountsOn),
    LookAlike(OtherDimension),
    LookAlike(OtherDimensionOfOneSize),
]
