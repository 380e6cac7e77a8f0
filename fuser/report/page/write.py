"""The page as one file: template, style, scripts and data."""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from .data import page_data

if TYPE_CHECKING:
    from ..report import Report

_SCRIPTS = ("dom", "model", "verdict", "kernel", "graph", "details", "list", "main")
_FRAME = (
    '<iframe title="fuser: graph diff" sandbox="allow-scripts" srcdoc="{}" '
    'style="width: 100%; height: 40rem; border: 1px solid #8886; border-radius: 6px"></iframe>'
)


def page(report: Report) -> str:
    """A whole HTML document, which loads nothing."""
    data = json.dumps(page_data(report), ensure_ascii=False, separators=(",", ":"))
    return Template(_read("page.html")).substitute(
        style=_read("page.css"),
        script="\n".join(_read(f"{name}.js") for name in _SCRIPTS),
        data=data.replace("<", "\\u003c"),  # or a string could end the script
        text=html.escape(report.to_text()),
    )


def frame(report: Report) -> str:
    """The page within a page, for notebooks: neither sees the other's style."""
    return _FRAME.format(html.escape(page(report)))


@cache
def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
