"""Diffusion models with random weights, as diffusers writes them: steps of a second or less on two
cores.

unet        SDXL's kind: residual blocks of group norms and convolutions, attention over text
vae         the decoder of an autoencoder, whose time goes into convolutions of large images

Each with its tensors in the order that the model is made in, and with channels last.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case, Workload, as_double

CHANNELS = 4
"""Of a latent."""
TOKENS, CONTEXT = 77, 128
"""Of the text."""
Arguments = tuple[Tensor, ...]


def unet(side: int) -> nn.Module:
    """Two resolutions, at the lower one with two transformer blocks."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = dict(
        sample_size=side,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 256),
        layers_per_block=1,
        cross_attention_dim=CONTEXT,
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(4, 8),  # SDXL's configuration calls the number of heads so
        use_linear_projection=True,
    )
    return UNet2DConditionModel(**config)


def denoise(model: nn.Module) -> Callable[..., Tensor]:
    """One step, of a latent, its time and a text."""

    def step(sample: Tensor, time: Tensor, text: Tensor) -> Tensor:
        return model(sample, time, text, return_dict=False)[0]

    return step


def unet_inputs(side: int) -> Arguments:
    return torch.randn(1, CHANNELS, side, side), torch.tensor([20]), torch.randn(1, TOKENS, CONTEXT)


def vae(side: int) -> nn.Module:
    """Two resolutions; the lower one has an attention."""
    from diffusers import AutoencoderKL

    config: dict[str, Any] = dict(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(64, 128),
        latent_channels=CHANNELS,
        sample_size=2 * side,
    )
    return AutoencoderKL(**config)


def decode(model: nn.Module) -> Callable[..., Tensor]:
    """An image of a latent."""

    def step(latent: Tensor) -> Tensor:
        return model.decode(latent, return_dict=False)[0]  # type: ignore[operator]

    return step


def vae_inputs(side: int) -> Arguments:
    return (torch.randn(1, CHANNELS, side, side),)


@dataclass(frozen=True)
class Model:
    """A model, and the side of its latent.

    Attributes:
        step: of the model, the function that is compiled.
        inputs: for a side.
        channels_last: of its parameters and of the latent.
    """

    make: Callable[[int], nn.Module]
    step: Callable[[nn.Module], Callable[..., Tensor]]
    inputs: Callable[[int], Arguments]
    side: int
    channels_last: bool = False


_UNET = Model(unet, denoise, unet_inputs, 64)
_VAE = Model(vae, decode, vae_inputs, 64)
MODELS: dict[str, Model] = {
    "unet": _UNET,
    "unet_last": replace(_UNET, channels_last=True),
    "vae": _VAE,
    "vae_last": replace(_VAE, channels_last=True),
}
QUICK = 16
"""The side for `--quick`."""


def build(spec: Model, dtype: torch.dtype, device: torch.device, mode: str) -> Case:
    """Random weights and inputs; no dropout in either mode, so that errors can be compared.

    Gradients are those of matrices and kernels: that of a bias in front of a norm is zero, and what
    rounding leaves of it is no error that could be compared.
    """
    order = torch.channels_last if spec.channels_last else torch.contiguous_format
    model: Any = spec.make(spec.side).to(device, dtype).eval()
    model = model.to(memory_format=order)
    args = tuple(
        a.to(device, dtype if a.is_floating_point() else None) for a in spec.inputs(spec.side)
    )
    args = (args[0].contiguous(memory_format=order), *args[1:])
    case = Case(spec.step(model), args)
    if mode == "full":
        with torch.no_grad():
            cotangent = torch.randn_like(case.fn(*args))
        case = replace(case, cotangents=(cotangent,), leaves=_matrices(model))
    return replace(case, double=lambda: _in_double(case, spec, model))


def _matrices(model: nn.Module) -> Arguments:
    return tuple(p for p in model.parameters() if p.ndim > 1)


def _in_double(case: Case, spec: Model, model: nn.Module) -> Case:
    twin = copy.deepcopy(model).double()
    changes: dict[str, Any] = {"fn": spec.step(twin), "args": tuple(map(as_double, case.args))}
    if case.cotangents:
        wide = tuple(map(as_double, case.cotangents))
        changes |= {"cotangents": wide, "leaves": _matrices(twin)}
    return replace(case, **changes, double=None)


def workloads(quick: bool) -> list[Workload]:
    """All models, forward, and with a backward."""

    def one(name: str, spec: Model) -> Workload:
        spec = replace(spec, side=QUICK) if quick else spec

        def case(dtype: torch.dtype, device: torch.device, mode: str) -> Case:
            return build(spec, dtype, device, mode)

        return Workload("diffusion", name, case, ("forward", "full"), ("side", spec.side), {})

    return [one(name, spec) for name, spec in MODELS.items()]
