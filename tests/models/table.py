"""`docs/models.md`: what is rewritten in each model of the zoo, and what is left and why.

    python -m tests.models.table            writes the page from what is recorded
    python -m tests.models.table --record   looks at all models first, for some minutes

What is recorded, in `tests/golden/models.json`, is what `tests/test_models.py` finds when it runs
the models. What the default policy keeps comes from the results of the benchmarks.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import fuser
from benchmarks.providers import FUSER
from benchmarks.records import RESULTS
from fuser.events import Record
from fuser.report.report import Report
from tests.accepted import GOLDEN

from . import CASES, ModelCase, diffusion, diffusion_sdpa, encoders, experts, language, vision
from .case import Outputs, logits

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
RECORD = GOLDEN / "models.json"
START, END = "<!-- models -->", "<!-- /models -->"
DEFAULT_START, DEFAULT_END = "<!-- default -->", "<!-- /default -->"
ALWAYS = {"fuser.policy": "always", "fuser.strict": True}
MODES = {False: "inference", True: "training"}
FAMILIES = {
    "moe": "mixture", "router": "router", "norm": "norm", "rope": "rotation",
    "activation": "activation",
}  # fmt: skip
"""Beside attention and loss: the header of each family."""
SECTIONS: dict[str, Sequence[ModuleType]] = {
    "Language models": (language,),
    "Mixtures of experts": (experts,),
    "Encoders, and models with a decoder beside one": (encoders,),
    "Images": (vision,),
    "Diffusion": (diffusion, diffusion_sdpa),
}
Found = dict[str, Any]
"""`regions`: their number by family; `left`: pattern, reason and number of each near miss."""


class Loss(nn.Module):
    """A model that returns its own loss, of the tokens that it reads or has decoded."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        labels = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        return self.model(**inputs, labels=labels).loss


def found(events: Record | Report) -> Found:
    """What was rewritten and what was left, as it is recorded."""
    regions: Counter[str] = Counter()
    for rewrite in events.rewritten:
        regions[rewrite.pattern.partition(".")[0]] += rewrite.count
    left = Counter((miss.pattern, miss.reason) for miss in events.near_misses)
    return {
        "regions": dict(sorted((family, n) for family, n in regions.items() if n)),
        "left": [[*key, n] for key, n in sorted(left.items())],
    }


def recorded(name: str, form: str, training: bool) -> Found:
    """What is recorded of a model that computes attention in one way."""
    return record()["models"][name]["forms"][form][MODES[training]]


def losses(name: str) -> Found:
    """What is found of the loss in the training of a model that has one of its own."""
    case = CASES[name]
    all_ = found(_looked_at(Loss(case.build(case.implementations[-1])), case, training=True))
    left = [each for each in all_["left"] if each[0].startswith("loss.")]
    return {"regions": {"loss": all_["regions"].get("loss", 0)}, "left": left}


def recorded_losses(name: str) -> Found:
    """What is recorded of that."""
    return record()["models"][name]["losses"]


def whole(name: str) -> Found:
    """What `fuser.compile` finds in inference, and in how many graphs."""
    case = CASES[name]
    model = Outputs(case, case.build(case.implementations[-1]))
    report = _looked_at(model, case, False, whole=True)
    return {**found(report), "graphs": report.graphs}


def recorded_whole(name: str) -> Found:
    """What is recorded of that."""
    return record()["models"][name]["compiled whole"]


@functools.cache
def record() -> dict[str, Any]:
    """All that is recorded."""
    return json.loads(RECORD.read_text(encoding="utf-8"))


def _looked_at(model: Any, case: ModelCase, training: bool, whole: bool = False) -> Report:
    torch._dynamo.reset()
    compiled = fuser.compile(model.train(training)) if whole else model.train(training)
    with torch.set_grad_enabled(training), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuser.explain(compiled, **case.inputs(), options=ALWAYS)


def look(case: ModelCase) -> dict[str, Any]:
    """Everything that is recorded of a model."""
    forms: dict[str, dict[str, Found]] = {}
    for form in case.implementations:
        model = Outputs(case, case.build(form))
        forms[form] = {
            MODES[training]: found(_looked_at(model, case, training)) for training in MODES
        }
    model = case.build(case.implementations[-1])
    name = f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"
    looked: dict[str, Any] = {"class": name, "forms": forms}
    if case.output is logits:
        looked["losses"] = losses(case.name)
    if not case.one_graph:
        looked["compiled whole"] = whole(case.name)
    return looked


def render(looked: Mapping[str, Any]) -> str:
    """The tables of all models, as Markdown."""
    lines: list[str] = []
    for title, modules in SECTIONS.items():
        cases = [case for module in modules for case in module.CASES]
        models = [(case, looked["models"][case.name]) for case in cases]
        shown = [f for f in FAMILIES if any(_most(model, f) for _, model in models)]
        lossy = any("losses" in model for _, model in models)
        header = ["model", "attention, spelled", "as SDPA", *(FAMILIES[f] for f in shown)]
        header += [*(["loss"] if lossy else []), "left, and where training differs"]
        numbers = len(header) - 2
        lines += [f"### {title}", "", _row(header), _row(["---", *["--:"] * numbers, "---"])]
        for case, model in models:
            cells = [_attention(model, "eager"), _attention(model, "sdpa")]
            cells += [_shown(_most(model, family)) for family in shown]
            cells += [_losses(model)] if lossy else []
            remarks = "; ".join(_remarks(case, model))
            lines.append(_row([f"{case.name}<br>`{model['class']}`", *cells, remarks]))
        lines.append("")
    return "\n".join([*lines, f"Found with {looked['versions']}."])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(number: int) -> str:
    return str(number or "")


def _losses(model: Mapping[str, Any]) -> str:
    return str(model["losses"]["regions"]["loss"]) if "losses" in model else ""


def _most(model: Mapping[str, Any], family: str) -> int:
    """Regions of a family in inference, which does not depend on how attention is computed."""
    forms = [form["inference"]["regions"].get(family, 0) for form in model["forms"].values()]
    assert len(set(forms)) == 1, f"{model['class']}: {family} differs"
    return forms[0]


def _attention(model: Mapping[str, Any], form: str) -> str:
    if form not in model["forms"]:
        return ""
    return str(model["forms"][form]["inference"]["regions"].get("attention", 0))


def _remarks(case: ModelCase, model: Mapping[str, Any]) -> Iterator[str]:
    """What is left of the first form; what training has else; graphs that are broken."""
    kept = [f["inference"]["regions"].get("attention", 0) for f in model["forms"].values()]
    calls = case.attentions - min(kept)
    if calls:
        yield f"{calls} calls of SDPA have no mask: they stay"
    first = next(iter(model["forms"].values()))
    left = [*first["inference"]["left"], *model.get("losses", {"left": []})["left"]]
    yield from (f"{n} of `{pattern}`: {reason}" for pattern, reason, n in left)
    usual, other = first["inference"], first["training"]
    for family in sorted({*usual["regions"], *other["regions"]}):
        number = other["regions"].get(family, 0)
        if number != usual["regions"].get(family, 0):
            yield f"training: {number} `{family}`"
    new = [each for each in other["left"] if each not in usual["left"]]
    yield from (f"training: {n} of `{pattern}`: {reason}" for pattern, reason, n in new)
    if not case.one_graph:
        entire = model["compiled whole"]
        number, graphs = entire["regions"].get("moe", 0), entire["graphs"]
        one = "1 graph" if graphs == 1 else f"{graphs} graphs"
        yield f"loops over experts break the graph; by `fuser.compile`: {number} mixtures, {one}"


def render_default(results: Path = RESULTS) -> str:
    """What the default policy kept of models that were measured, as Markdown."""
    table = [["model", "", "size", "rewritten", "over Inductor"], ["---"] * 3 + ["---", "--:"]]
    for family in ("models", "diffusion"):
        with (results / f"{family}-cpu.csv").open(newline="") as file:
            lines = [li for li in csv.DictReader(file) if li["provider"] == FUSER]
        for line in lines:
            if line["metric"] != "speedup_over_inductor":
                continue
            extra = json.loads(line["extra_config"])
            regions = [f"{n} `{pattern}`" for pattern, n in extra.get("rewrites", {}).items()]
            mode = "and backward" if line["mode"] == "full" else "forward"
            table.append([
                line["kernel_name"].partition(".")[2],
                f"{extra['dtype']} {mode}",
                f"{line['x_name']} = {line['x_value']}",
                ", ".join(regions) or "nothing",
                f"{float(line['y_value_50']):.2f}x",
            ])  # fmt: skip
    return "\n".join(map(_row, table))


def page(text: str) -> str:
    """The page with both tables as they should be."""
    for start, end, table in (
        (START, END, render(record())),
        (DEFAULT_START, DEFAULT_END, render_default()),
    ):
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def _versions() -> str:
    from importlib.metadata import version

    names = ("torch", "transformers", "diffusers", "timm")
    return ", ".join(f"{name} {version(name)}" for name in names)


def main() -> None:
    """Records what is found, if that is asked for, and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.models.table", description=__doc__)
    parser.add_argument("--record", action="store_true", help="look at all models first")
    if parser.parse_args().record:
        models: dict[str, Any] = {}
        for name, case in CASES.items():
            models[name] = look(case)
            print(name, flush=True)
        text = json.dumps({"versions": _versions(), "models": models}, indent=1)
        RECORD.write_text(text + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
