"""Parameters of operators that read, write or count by positions, beside those in `ops`."""

from __future__ import annotations

_NLL_LOSS = "input target weight size_average ignore_index reduce reduction"
INDEXING: dict[str, str] = {
    "addmm": "input mat1 mat2",
    "any": "input dim keepdim",
    "cross_entropy": f"{_NLL_LOSS} label_smoothing",
    "embedding": "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "flip": "input dims",
    "glu": "input dim",
    "index_add": "input dim index source",
    "index_copy": "input dim index source",
    "index_put": "input index values accumulate",
    "mean": "input dim keepdim",
    "nll_loss": _NLL_LOSS,
    "scatter_reduce": "input dim index src reduce",
    "searchsorted": "sorted_sequence input",
    "take_along_dim": "input index dim",
    "view_as_complex": "input",
    "view_as_real": "input",
}
"""In the functional spelling; all of kind OTHER."""

KEYWORDS: dict[str, dict[str, str]] = {
    "any": {"axis": "dim"},
    "index_put": {"indices": "index"},
    "mean": {"axis": "dim"},
    "take_along_dim": {"indices": "index"},
}
"""Other names of these parameters."""
