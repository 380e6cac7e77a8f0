"""Parameters of operators that normalise, or take a statistic of what is normalised."""

from __future__ import annotations

from typing import Any

import torch

STATISTICS: dict[str, str] = {
    "group_norm": "input num_groups weight bias eps",
    "instance_norm": "input running_mean running_var weight bias use_input_stats momentum eps",
    "layer_norm": "input normalized_shape weight bias eps",
    "norm": "input p dim keepdim out dtype",
    "normalize": "input p dim eps out",
    "rms_norm": "input normalized_shape weight eps",
    "std": "input dim unbiased keepdim",
    "std_mean": "input dim unbiased keepdim",
    "var": "input dim unbiased keepdim",
    "var_mean": "input dim unbiased keepdim",
    "vector_norm": "input ord dim keepdim dtype",
}
"""In the functional spelling; all of kind OTHER."""

ORDERS: dict[Any, str] = {
    torch.instance_norm: (
        "input weight bias running_mean running_var use_input_stats momentum eps cudnn_enabled"
    ),
}
"""Where a spelling orders its parameters differently."""

FUNCTIONS = {torch.linalg.vector_norm: "vector_norm"}
"""What is found under another name than its own."""
