"""Losses of a language model's head as people write them: modules that take hidden states, B T D,
and labels, B T."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LENGTH, FEATURES, CLASSES = 2, 7, 8, 19
IGNORED = -100


def labels() -> Tensor:
    """Two of them ignored."""
    found = torch.arange(BATCH * LENGTH).mul(5).remainder(CLASSES).view(BATCH, LENGTH)
    found[0, 2] = found[1, 5] = IGNORED
    return found


class Head(nn.Module):
    """A matrix of all classes; `bias` beside it."""

    bias = False

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(FEATURES, CLASSES, bias=self.bias)
        self.temperature = nn.Parameter(torch.tensor([1.7]))
        nn.init.normal_(self.lm_head.weight, generator=torch.Generator().manual_seed(3))


class Flattened(Head):
    """nanoGPT's."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        return F.cross_entropy(logits.view(-1, logits.size(-1)), target.view(-1), ignore_index=-100)


class Shifted(Head):
    """transformers', before it had a function for it."""

    bias = True

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x).float()
        shift = logits[..., :-1, :].contiguous()
        target = target[..., 1:].contiguous()
        return nn.CrossEntropyLoss()(shift.view(-1, CLASSES), target.view(-1))


class ShiftedAfterwards(Head):
    """Sliced as `[:, :-1]`, flattened by `reshape`."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)[:, :-1]
        return F.cross_entropy(logits.reshape(-1, CLASSES), target[:, 1:].reshape(-1))


class ClassesSecond(Head):
    """PyTorch's (N, C, d1)."""

    bias = True

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x).transpose(1, 2)
        return F.cross_entropy(logits, target, label_smoothing=0.1)


class Summed(Head):
    """Divided by a number of tokens that is counted elsewhere; other labels are ignored."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        target = target.masked_fill(target < 0, 3)
        logits = x @ self.lm_head.weight.t()
        loss = F.cross_entropy(
            logits.flatten(0, 1), target.flatten(), ignore_index=3, reduction="sum"
        )
        return loss / (target != 3).sum()


class SoftCapped(Head):
    """Gemma 2's."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x)
        logits = torch.tanh(logits / 3.0) * 3.0
        return F.cross_entropy(logits.float().view(-1, CLASSES), target.view(-1))


class Masked(Head):
    """A loss of each token, and a mask: fine-tuning on answers."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        mask = (target > 4).float()
        each = F.cross_entropy(self.lm_head(x).view(-1, CLASSES), target.view(-1), reduction="none")
        return (each.view(BATCH, -1) * mask).sum() / mask.sum()


class MeanOfEach(Head):
    """Ignored rows count in the mean."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(self.lm_head(x).transpose(1, 2), target, reduction="none")
        return each.mean()


class Each(Head):
    """Nothing is added up."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.lm_head(x).transpose(-1, -2), target, reduction="none")


class NegativeLogLikelihood(Head):
    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = F.log_softmax(F.linear(x, self.lm_head.weight), dim=-1, dtype=torch.float32)
        return F.nll_loss(scores.view(-1, CLASSES), target.view(-1))


class ByHand(Head):
    """logsumexp - gather."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = torch.einsum("btd,vd->btv", x, self.lm_head.weight)
        picked = logits.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return (torch.logsumexp(logits, -1) - picked).mean()


class LogProbabilities(Head):
    """-log_softmax, gathered, with a mask: as in fine-tuning with rewards."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        scores = self.lm_head(x).float().log_softmax(-1)
        each = torch.gather(scores, 2, target.clamp(min=0)[:, :, None])[..., 0:].squeeze(2)
        return -(each * (target >= 0)).sum() / (target >= 0).sum()


class ZLoss(Head):
    """PaLM's: the square of logsumexp keeps logits small."""

    bias = True

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = self.lm_head(x).float()
        loss = F.cross_entropy(logits.view(-1, CLASSES), target.view(-1))
        return loss + 1e-2 * logits.logsumexp(-1).pow(2).mean()


class ZLossOfKept(Head):
    """Of the tokens that count, both divided by their number."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits, mask = self.lm_head(x), (target >= 0).float()
        lse = logits.logsumexp(dim=-1)
        each = lse - logits.gather(-1, target.clamp(min=0)[..., None]).squeeze(-1)
        count = mask.sum()
        return (each * mask).sum() / count + 0.02 * (lse**2 * mask).sum() / count


class Temperature(Head):
    """A learned scale, and biases that are added afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.linspace(-1, 1, CLASSES))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        logits = (torch.matmul(x, self.lm_head.weight.mT) + self.offset) * self.temperature
        return F.cross_entropy(logits.view(-1, CLASSES), target.view(-1), label_smoothing=0.2)


class Tied(Head):
    """The matrix is that of the embedding."""

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        x = x + F.embedding(target.clamp(min=0), self.lm_head.weight)
        return 0.5 * F.cross_entropy(
            F.linear(x, self.lm_head.weight).view(-1, CLASSES), target.view(-1)
        )


FORMS: list[type[Head]] = [
    Flattened, Shifted, ShiftedAfterwards, ClassesSecond, Summed, SoftCapped, Masked, MeanOfEach,
    Each, NegativeLogLikelihood, ByHand, LogProbabilities, ZLoss, ZLossOfKept, Temperature, Tied,
]  # fmt: skip
