"""The picture of a page in the README: `python -m tests.report.screenshot [FILE.png]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from fuser.report.explain import explain

from .browser import browser, opened
from .models import deep, tokens

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "graph-diff.png"


def main() -> None:
    """Thirty layers, of which the eighteenth returns its probabilities, and why it was left."""
    picture = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    with torch.no_grad():
        report = explain(deep(), tokens())
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        file = report.to_html(Path(folder) / "diff.html")
        with opened(chromium, file, color_scheme="light") as page:
            page.set_viewport_size({"width": 1240, "height": 720})
            page.get_by_role("button", name="layers.17:").click()
            page.get_by_role("navigation").get_by_role("button", name="attention.softmax").click()
            page.mouse.move(0, 0)
            page.screenshot(path=picture)
    print(f"{picture}: {picture.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
