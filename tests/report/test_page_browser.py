"""The page of a report, as a person uses it: in a headless browser, with mouse and keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fuser.events import Failure, Listing, NearMiss, Printed, Record, Rewritten, Row, Where
from fuser.printed import first_line
from fuser.report.explain import explain
from fuser.report.report import Report

from .browser import browser as launched
from .browser import chromium, opened
from .models import Encoder, SelfAttention, deep, line_of, tokens
from .test_page import verified

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
REASON = "the probabilities are used elsewhere: returned"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of thirty layers, of which the eighteenth returns its probabilities."""
    torch._dynamo.reset()
    with torch.no_grad():
        report = explain(deep(), tokens())
    report.expect(attention=29)
    return report.to_html(tmp_path_factory.mktemp("page") / "diff.html")


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    with opened(browser, file) as found:
        yield found


def titles(page: Page) -> list[str]:
    return page.locator("#list .item b").all_inner_texts()


def test_opens_in_two_seconds_and_is_small(browser: Browser, file: Path) -> None:
    assert file.stat().st_size < 2_000_000
    spent: list[float] = []
    for _ in range(3):  # the machine may have been busy with something else
        start = time.perf_counter()
        with opened(browser, file) as page:
            page.locator("#list .item").first.wait_for()
            page.locator("#graph .row").first.wait_for()
            spent.append(time.perf_counter() - start)
    assert min(spent) < 2


def test_what_a_page_asks_the_network_for_is_seen(browser: Browser, tmp_path: Path) -> None:
    """Or the other tests would not see it."""
    file = tmp_path / "asking.html"
    file.write_text('<img src="https://example.com/picture.png">')
    with pytest.raises(AssertionError, match=r"asked for https://example\.com/picture\.png"):
        with opened(browser, file) as page:
            page.wait_for_load_state("load")


def test_three_clicks_to_why_layer_17_was_not_fused(page: Page) -> None:
    page.get_by_role("button", name="attention", exact=True).click()
    page.get_by_role("button", name="layers.17:").click()
    page.get_by_role("navigation").get_by_role("button", name="attention.softmax").click()
    details = page.get_by_role("region", name="Region", exact=True)
    assert REASON in details.inner_text()
    assert "do not return them" in details.inner_text()
    assert f"models.py:{line_of('softmax')}" in details.inner_text()
    assert "p = scores.softmax(-1)" in details.inner_text()
    failing = page.locator("#graph .row.miss")
    assert failing.count() == 1
    assert "p_17: float32[2, 4, 64, 64]" in failing.inner_text()
    assert "layers.17.attn" in failing.inner_text()
    note = page.locator("#graph .note")
    assert note.inner_text() == f"▲ attention.softmax: {REASON}"
    inside = (
        "e => { const r = e.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight }"
    )
    assert failing.evaluate(inside)
    assert note.evaluate(inside)


def test_the_layers_tell_at_once_which_one_differs(page: Page) -> None:
    cells = page.locator("#layers .cell")
    assert cells.count() == 30
    assert page.locator("#layers .cell.declined").all_inner_texts() == ["17"]
    assert page.locator("#layers .cell.rewritten").count() == 29
    label = cells.nth(17).get_attribute("aria-label")
    assert label == "layers.17: 1 declined, 3 proved, left to the inner backend"


def test_equal_layers_are_folded_and_others_are_one_key_away(page: Page) -> None:
    item = page.locator("#list .item.rewritten")
    assert item.count() == 1
    assert "attention.softmax ×29" in item.inner_text()  # noqa: RUF001
    assert "layers.{0-16,18-29}.attn" in item.inner_text()
    item.click()
    for layer in ("0", "1", "2"):
        pressed = page.locator("#details .members [aria-pressed=true]")
        assert pressed.inner_text() == layer
        assert f"layers.{layer}.attn" in page.locator("#details .place").inner_text()
        selected = page.locator("#graph .row.selected")
        assert selected.count() > 0
        title = selected.first.locator("[title]").get_attribute("title")
        assert title is not None
        assert title.startswith(f"layers.{layer}.attn\n")
        page.keyboard.press("ArrowRight")


def test_before_and_after_stand_side_by_side(page: Page) -> None:
    page.locator("#list .item.rewritten").click()
    rows = page.locator("#graph .row.selected")
    before = [rows.nth(i).locator("code").nth(0).inner_text() for i in range(rows.count())]
    after = [rows.nth(i).locator("code").nth(1).inner_text() for i in range(rows.count())]
    assert any(text.startswith("p: float32[2, 4, 64, 64]") for text in before)
    assert any("scaled_dot_product_attention" in text for text in after)
    assert not any("softmax" in text for text in after)
    facts = page.locator("#details dl").inner_text()
    assert "4 query, 4 key-value" in facts
    maths = page.locator("#details dd.maths")
    assert maths.locator("sub").all_inner_texts() == ["0"]
    assert maths.inner_text().replace("\n", "") == "s0 · 0.25"
    candidates = page.locator("#details tbody tr")
    assert candidates.count() > 2
    assert page.locator("#details tr.chosen td").first.inner_text().startswith("✓ aten")


def test_only_regions_are_open_and_the_rest_unfolds(page: Page) -> None:
    drawn, folds = page.locator("#graph .row").count(), page.locator("#graph .fold")
    assert drawn < 60
    text = folds.nth(1).inner_text()
    assert "attention.softmax ×16" in text  # noqa: RUF001
    hidden = int(text.split()[1])
    folds.nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("#graph .row").count() == drawn + 300
    assert f"{hidden - 300} nodes" in folds.nth(1).inner_text()


def test_keys(page: Page) -> None:
    page.keyboard.press("j")
    assert REASON in page.locator("#details").inner_text()
    page.keyboard.press("j")
    assert page.locator("#list [aria-current=true] b").inner_text() == "attention.softmax"
    page.keyboard.press("ArrowUp")
    assert REASON in page.locator("#details").inner_text()
    page.keyboard.press("k")
    assert REASON in page.locator("#details").inner_text()
    page.keyboard.press("/")
    page.keyboard.type("mlp_norm")
    assert page.locator("#search").input_value() == "mlp_norm"
    assert "norm.spelled" in titles(page)
    assert "attention.softmax" not in titles(page)
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    assert "attention.softmax" in titles(page)
    page.keyboard.press("Escape")
    assert "What this compile did" in page.locator("#details").inner_text()
    page.keyboard.press("g")
    assert page.evaluate("document.activeElement.id") == "graph"
    page.keyboard.press("?")
    assert page.get_by_role("dialog", name="Keyboard").is_visible()
    page.keyboard.press("Escape")
    assert not page.get_by_role("dialog", name="Keyboard").is_visible()


def test_the_whole_way_without_a_mouse(page: Page) -> None:
    """Tab reaches the layers and the list; Enter chooses."""
    page.locator('#layers [aria-label^="layers.17"]').focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "17"
    assert page.locator('#layers [aria-pressed="true"]').inner_text() == "17"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('#list .item')"):
            break
    page.keyboard.press("Enter")
    assert REASON in page.locator("#details").inner_text()


def test_filters_and_search_together(page: Page) -> None:
    page.get_by_role("button", name="norm", exact=True).click()
    assert set(titles(page)) == {"norm.spelled"}
    assert page.locator("#layers .cell.left").count() == 30
    page.get_by_role("button", name="layers.3:").click()
    assert page.locator("#list .times").count() == 0
    assert "layers.3." in page.locator("#list .item").first.inner_text()
    page.get_by_role("button", name="all", exact=True).click()
    page.get_by_role("button", name="layers.3:").click()
    page.get_by_role("searchbox").fill("softmax_no_such")
    assert "Nothing here" in page.locator("#list").inner_text()
    page.get_by_role("searchbox").fill("scores_23")
    node = page.locator("#list .item", has_text="scores_23: float32")
    node.first.click()
    shown = page.locator("#graph .row.selected")
    assert "scores_23" in shown.first.inner_text()


def test_light_dark_and_the_toggle(browser: Browser, file: Path) -> None:
    def background(page: Page) -> tuple[int, ...]:
        text = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return tuple(int(part) for part in text[4:-1].split(","))

    with opened(browser, file, color_scheme="dark") as dark:
        assert max(background(dark)) < 60
        dark.get_by_role("button", name="Theme").click()
        assert min(background(dark)) > 200
    with opened(browser, file, color_scheme="light") as light:
        assert min(background(light)) > 200
        light.keyboard.press("t")
        assert max(background(light)) < 60


CONTRAST = """() => {
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*r + 0.7152*g + 0.0722*b };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!c.startsWith("rgba")) return c } return "rgb(255, 255, 255)" };
  const low = [];
  for (const e of document.querySelectorAll("header *, #filters *, main *")) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(getComputedStyle(e).color), b = light(behind(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${e.className || e.tagName}: ${ratio.toFixed(2)} ${e.textContent.slice(0, 20)}`);
  }
  return [...new Set(low)];
}"""  # noqa: E501


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_and_has_a_name(browser: Browser, file: Path, scheme: Any) -> None:
    with opened(browser, file, color_scheme=scheme) as page:
        for key in ("j", "j", "j"):
            page.keyboard.press(key)
            assert page.evaluate(CONTRAST) == []
        nameless = (
            "[...document.querySelectorAll('button')].filter(b => !b.textContent.trim()).length"
        )
        assert page.evaluate(nameless) == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def node(i: int, text: str = "") -> Row:
    code, module = f"x = f(x)  # {i % 40}", f"h.{i // 100}.mlp"
    place = Where(f"n{i}", "/home/me/model.py", 1 + i % 40, code, module)
    return Row(text or f"n{i}: float32[8, 8] = relu(n{i - 1})", place)


def many_nodes(count: int) -> Record:
    """A graph in which nodes 45 to 50 of each hundred become one."""
    before, after = [node(i) for i in range(count)], list[Row]()
    made: list[Rewritten] = []
    origin = "norm.spelled at model.py:3"
    for i, row in enumerate(before):
        if i % 100 == 50:
            new, facts = f"new_{i}: float32[8, 8] = fused(n{i - 6})", {"after": "(n * 1.5)"}
            gone = tuple(row.fx for row in before[i - 5 : i + 1])
            made.append(
                Rewritten(
                    *("norm.spelled", row.where, "triton", "why", facts, gone, (new,)),
                    origin=origin,
                )
            )
            after.append(node(i, new))
        elif not 45 <= i % 100 < 50:
            after.append(row)
    text = f'{first_line(origin)}\n"""\nimport triton\n\n# a comment\ndef norm_kernel(x):\n'
    return Record(
        rewritten=made,
        near_misses=[NearMiss("loss.linear", Where("gone"), "the node is in no graph")],
        failures=[Failure("mine.gelu", Where("n20", module="h.0.mlp"), "Error: <b>bold</b>")],
        breaks=["model.py:3: `if x:`: a branch"],
        graphs=1,
        nodes=count,
        listings=[Listing(tuple(before), tuple(after))],
        kernels=[Printed("norm_kernel", text + "    tl.load(x, 1.5)\n")],
    )


def test_many_thousand_nodes_are_drawn_when_they_are_opened(
    browser: Browser, tmp_path: Path
) -> None:
    file = Report.of(many_nodes(20_000)).to_html(tmp_path / "large.html")
    with opened(browser, file) as page:
        page.locator("#graph .fold").first.wait_for()
        assert page.evaluate("document.querySelectorAll('*').length") < 1_500
        start = time.perf_counter()
        page.get_by_role("searchbox").fill("n19321")
        page.locator("#list .item", has_text="n19321:").click()
        assert "n19321" in page.locator("#graph .row.selected").inner_text()
        assert time.perf_counter() - start < 5
        assert "graph break" in page.locator("#summary").inner_text()
        page.keyboard.press("Escape")
        assert "`if x:`: a branch" in page.locator("#details").inner_text()


def test_kernels_markup_and_events_that_are_in_no_graph(browser: Browser, tmp_path: Path) -> None:
    file = Report.of(many_nodes(200)).to_html(tmp_path / "small.html")
    with opened(browser, file) as page:
        page.locator("#list .item.failed").click()
        assert "Error: <b>bold</b>" in page.locator("#details .reason").inner_text()
        page.locator("#list .item.declined").click()
        assert "the node is in no graph" in page.locator("#details").inner_text()
        assert page.locator("#graph .row.selected").count() == 0
        page.locator("#list .item.rewritten").first.click()
        page.locator("details.kernel summary").click()
        assert page.locator(".kernel .com").inner_text() == "# a comment"
        assert page.locator(".kernel .kw").all_inner_texts() == ["import", "def"]
        assert page.locator(".kernel .fn").inner_text() == "tl.load"
        assert page.locator(".kernel .num").inner_text() == "1.5"
        assert (
            page.locator(".kernel .str").inner_text().startswith('"""Generated by fuser for norm')
        )


def test_what_verification_found(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, Report.of(verified()).to_html(tmp_path / "verified.html")) as page:
        details = page.locator("#details")
        assert "1\nverified against fp64" in details.inner_text()
        taken = page.locator("#list .item.wrong")
        assert "is inf instead of 2" in taken.inner_text()
        assert page.locator("#list h2").first.inner_text() == "Taken back"
        assert page.locator("#list .item.rewritten .badge").inner_text() == "1 of 2 not verified"
        taken.click()
        assert page.locator("#details .badge").all_inner_texts() == ["Taken back"]
        cells = page.locator("#details .verdict tr.wrong td").all_inner_texts()
        assert cells == ["output 0", "∞", "1.0e-7", "3.0e-7", "[0, 1, 2] is inf instead of 2"]
        assert "/tmp/reproduce_0.py" in details.inner_text()
        assert page.evaluate(CONTRAST) == []
        outcomes = page.get_by_role("group", name="Verification")
        assert outcomes.locator("button").all_inner_texts() == [
            *("taken back", "not verified", "verified"),
        ]
        outcomes.get_by_role("button", name="verified", exact=True).click()
        assert page.locator("#list .item").count() == 1
        page.locator("#list .item.rewritten").click()
        badge = page.locator("#details .badge.verified").inner_text()
        assert badge == "verified: error 2.0e-7, the original's 1.0e-7"
        outcomes.get_by_role("button", name="not verified").click()
        page.locator("#list .item.rewritten").click()
        assert "Not verified: it draws random numbers" in details.inner_text()
        assert page.evaluate(CONTRAST) == []
        outcomes.get_by_role("button", name="not verified").click()
        assert page.locator("#list .item").count() > 3
        page.get_by_role("searchbox").fill("reproduce_0")
        assert page.locator("#list .item").count() == 1
        assert page.locator("#layers .cell.wrong").all_inner_texts() == ["2"]
    with opened(browser, Report.of(many_nodes(200)).to_html(tmp_path / "none.html")) as page:
        assert not page.get_by_role("group", name="Verification").is_visible()


def test_a_break_makes_several_graphs(browser: Browser, tmp_path: Path) -> None:
    torch._dynamo.reset()
    with torch.no_grad():
        report = explain(Encoder(SelfAttention(), SelfAttention(broken=True)), tokens())
    with opened(browser, report.to_html(tmp_path / "broken.html")) as page:
        assert f"models.py:{line_of('break')}" in page.locator("#details li").first.inner_text()
        tabs = page.locator("#graph .title button")
        assert tabs.all_inner_texts() == ["graph 0", "graph 1", "graph 2"]
        page.locator("#list .item.declined").click()
        assert page.locator("#graph [aria-pressed=true]").inner_text() == "graph 2"
        assert page.locator("#graph .note").count() == 1
        tabs.nth(0).click()
        assert page.locator("#graph [aria-pressed=true]").inner_text() == "graph 0"


def test_nothing_at_all(browser: Browser, tmp_path: Path) -> None:
    file = Report.of(Record(graphs=1)).to_html(tmp_path / "empty.html")
    with opened(browser, file) as page:
        assert "Nothing here" in page.locator("#list").inner_text()
        assert "were not recorded" in page.locator("#graph").inner_text()
        page.keyboard.press("j")
        page.keyboard.press("Escape")


def test_in_a_notebook_neither_sees_the_others_style(browser: Browser, tmp_path: Path) -> None:
    frame = Report.of(many_nodes(200))._repr_html_()
    file = tmp_path / "notebook.html"
    file.write_text(f"<style>button {{ color: rgb(1, 2, 3) }}</style><button>mine</button>{frame}")
    with opened(browser, file) as page:
        inner = page.frame_locator("iframe")
        inner.locator("#list .item").first.click()
        assert "at" in inner.locator("#details .place").inner_text()
        color = "e => getComputedStyle(e).color"
        assert page.locator("button").evaluate(color) == "rgb(1, 2, 3)"
        assert inner.locator("#theme").evaluate(color) != "rgb(1, 2, 3)"


def test_a_region_has_an_address(browser: Browser, file: Path, page: Page) -> None:
    page.keyboard.press("j")
    address = page.url
    assert "#region-" in address
    page.keyboard.press("Escape")
    page.goto(address)
    page.reload()
    assert REASON in page.locator("#details").inner_text()


def test_without_scripts_the_text_is_there(browser: Browser, file: Path) -> None:
    with opened(browser, file, java_script_enabled=False) as page:
        assert REASON in page.locator("body").inner_text()
        assert not page.locator("main").is_visible()
