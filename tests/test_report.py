"""The report and the terminal summary: nothing escapes, nothing overflows, nothing is loaded, nothing varies."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import struct
import sys
import zlib
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from chromium import dom_of, needs_chromium
from proponent.audit.result import Audit
from proponent.report import plots, words
from proponent.report.html import write_html
from proponent.report.png import png, shrink
from proponent.report.terminal import summarise


def _made() -> ModuleType:
    """The generator beside this file, whatever the test runner thinks of packages."""
    spec = importlib.util.spec_from_file_location("make_audit", Path(__file__).with_name("make_audit.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_audit"] = module
    spec.loader.exec_module(module)
    return module


made = _made()
ALL = ("tabular", "texts", "images", "photographs", "wide", "regression", "empty", "bare", "hostile")
VOID = {"meta", "img", "br", "input", "link", "hr"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every made-up audit as a page."""
    folder = tmp_path_factory.mktemp("pages")
    for name in ALL:
        write_html(getattr(made, name)(), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in ALL}


class Page(HTMLParser):
    """Counts on every tag being closed in order, and keeps tags, attributes, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.feed(text)
        self.close()
        self.text = "".join(self.parts)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"repeated attribute in {tag}: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"style", "script"}:
            self.parts.append(data)


@pytest.fixture(scope="module")
def parsed(pages: dict[str, Path]) -> dict[str, Page]:
    """Every page, read by a parser."""
    return {name: Page(path.read_text("utf-8")) for name, path in pages.items()}


@pytest.mark.parametrize("name", ALL)
def test_page_is_well_formed_and_ids_are_unique(parsed: dict[str, Page], name: str) -> None:
    page = parsed[name]
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"}
    assert targets <= set(ids)
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)


@pytest.mark.parametrize("name", ALL)
def test_headings_do_not_skip_a_level_and_images_have_words(parsed: dict[str, Page], name: str) -> None:
    page = parsed[name]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img")
    tables = sum(tag == "table" for tag, _ in page.tags)
    assert tables == sum(tag == "caption" for tag, _ in page.tags)


@pytest.mark.parametrize("name", ALL)
def test_page_loads_nothing_from_elsewhere(pages: dict[str, Path], parsed: dict[str, Page], name: str) -> None:
    text, page = pages[name].read_text("utf-8"), parsed[name]
    for tag, attrs in page.tags:
        for attribute in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            value = str(attrs.get(attribute) or "")
            assert value == "" or value.startswith("#") or (tag == "img" and value.startswith("data:image/png;base64,"))
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        assert "style" not in attrs and not any(a.startswith("on") for a in attrs)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    policy = next(str(a["content"]) for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy


def test_text_from_the_data_is_only_ever_text(pages: dict[str, Path], parsed: dict[str, Page]) -> None:
    text, page = pages["hostile"].read_text("utf-8"), parsed["hostile"]
    assert "<script>alert" not in text and "<img src=x" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any("onerror" in attrs for _, attrs in page.tags)
    shown = words.plain(made.HOSTILE)
    assert page.text.count(shown) > 100
    assert any(shown in str(attrs.get("alt")) for tag, attrs in page.tags if tag == "img")
    assert "{{ 7*7 }}" in page.text
    assert "\x1b" not in text and "\u202e" not in text


def test_svg_escapes_labels_titles_and_attributes() -> None:
    bar = plots.Bar(made.HOSTILE, 1.0, 0.5, 1.5, made.HOSTILE, "helps")
    line = plots.Line("a", np.arange(3.0), np.arange(3.0), np.arange(3.0), np.arange(3.0), "plain")
    for width in (plots.WIDE, plots.NARROW):
        for svg in (
            plots.bars([bar], width, made.HOSTILE),
            plots.curve([line], width, made.HOSTILE, made.HOSTILE),
            plots.histogram(np.arange(9.0), width, made.HOSTILE),
        ):
            root = ElementTree.fromstring(svg)
            assert not [e for e in root.iter() if e.tag in {"script", "img"}]
            assert root.attrib["aria-label"].startswith(words.plain(made.HOSTILE)[:20])


@pytest.mark.parametrize(
    "values", [[], [0.0], [1.0, 1.0], [np.nan, 2.0], [-1e-9, 1e-9], [1e300, -1e300], list(range(999))]
)
def test_histogram_counts_every_finite_value(values: list[float]) -> None:
    svg = plots.histogram(np.array(values, dtype=float), 720, "value")
    counts = [int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) rows</title>", svg)]
    assert sum(counts) == np.isfinite(values).sum()
    assert "nan" not in svg and "inf" not in svg
    ElementTree.fromstring(svg)


def test_histogram_tells_help_from_hurt_at_zero() -> None:
    svg = plots.histogram(np.array([-3.0, -0.1, 0.1, 0.2, 3.0]), 720, "value")
    rects = re.findall(r'class="bar (\w+)".*?<title>(.*?) to (.*?): (\d+) rows', svg)
    below = sum(int(n) for tone, _, _, n in rects if tone == "hurts")
    assert below == 2 and all(("−" in start) == (tone == "hurts") for tone, start, _, _ in rects)


def test_bars_stand_where_their_numbers_say() -> None:
    rows = [plots.Bar("a", 2.0, 1.0, 3.0, "2", "helps"), plots.Bar("b", -1.0, -2.0, 0.0, "−1", "hurts")]
    svg = ElementTree.fromstring(plots.bars(rows, 720, "effect"))
    first, second = (e for e in svg.iter("rect"))
    zero = float(first.attrib["x"])
    assert zero == pytest.approx(float(second.attrib["x"]) + float(second.attrib["width"]), abs=0.2)
    assert float(first.attrib["width"]) == pytest.approx(2 * float(second.attrib["width"]), rel=0.01)


@pytest.mark.parametrize("shape", [(3, 5), (4, 7, 3)])
def test_png_holds_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    data, at, parts = png(pixels), 8, {}
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(name + body)
        parts[name], at = body, at + 12 + size
    assert struct.unpack(">IIBB", parts[b"IHDR"][:10]) == (shape[1], shape[0], 8, 2 if len(shape) == 3 else 0)
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(shape[0], -1)
    assert (lines[:, 0] == 0).all() and (lines[:, 1:].reshape(shape) == pixels).all()


def test_png_is_read_by_an_imaging_library() -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3)).astype(np.uint8)
    assert (np.asarray(image.open(io.BytesIO(png(pixels)))) == pixels).all()


def test_shrink_averages_blocks_and_leaves_small_pictures_alone() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert shrink(pixels, 4) is pixels
    assert shrink(pixels, 2).tolist() == [[2, 4], [10, 12]]
    assert shrink(np.zeros((3, 400, 3), np.uint8), 100).shape == (1, 100, 3)


@pytest.mark.parametrize("name", ["tabular", "hostile", "bare"])
def test_same_audit_same_bytes(pages: dict[str, Path], tmp_path: Path, name: str) -> None:
    write_html(getattr(made, name)(), tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == pages[name].read_bytes()


def test_page_stays_small_and_says_what_it_leaves_out(pages: dict[str, Path], parsed: dict[str, Page]) -> None:
    assert all(path.stat().st_size <= 1_500_000 for path in pages.values())
    assert "292 more stand in issues.csv" in parsed["tabular"].text
    assert "more columns, not on this page" in parsed["wide"].text


def test_page_tells_what_the_audit_found(parsed: dict[str, Page]) -> None:
    audit = made.tabular()
    text = " ".join(parsed["tabular"].text.split())
    assert "312 of 32,561 rows look mislabelled." in text
    assert "raises held-out accuracy by 0.8 points (95 % CI 0.5 to 1.1); the same done to random rows: −0.1" in text
    assert "positive = helps the held-out predictions" in text
    assert audit.command in text and "numpy" in text and audit.versions["numpy"] in text
    for part in (*audit.warnings, *(t.because for t in audit.trust), *(r for _, r in audit.skipped)):
        assert part in text
    value = audit.issues.loc[audit.issues["kind"] == "label_error", ["value", "value_lower", "value_upper"]].iloc[0]
    assert "value {} [{}, {}]".format(*map(words.number, value)) in text
    assert "slice native-country = Philippines" in text
    for neighbour in audit.explained[0].proponents[:4]:
        assert f"row {neighbour.row}" in text
    assert any(str(attrs.get("alt")).startswith("row ") for tag, attrs in parsed["images"].tags if tag == "img")


@pytest.mark.parametrize("name", ["empty", "bare"])
def test_nothing_found_is_said_in_words(parsed: dict[str, Page], name: str) -> None:
    text = parsed[name].text
    assert "None of 32,561 rows looks mislabelled; nothing else stands out." in text
    assert "No self-check was run" in text


@pytest.mark.parametrize("missing", ["issues", "slices", "checks", "curve", "values", "columns", "groups"])
def test_any_table_may_be_empty(tmp_path: Path, missing: str) -> None:
    audit: Audit = made.tabular()
    part = None if missing == "groups" else getattr(audit, missing).iloc[:0]
    bare = replace(audit, **{missing: part})  # type: ignore[arg-type]
    write_html(bare, tmp_path / "page.html")
    Page((tmp_path / "page.html").read_text("utf-8"))
    assert _terminal(bare)


def test_numbers_may_be_missing(tmp_path: Path) -> None:
    audit: Audit = made.tabular()

    def gone(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
        return frame.assign(**{c: np.nan for c in columns})

    def unbounded(e: Any) -> Any:
        return replace(
            e,
            probability=None,
            proponents=tuple(replace(n, lower=np.nan, upper=np.nan) for n in e.proponents),
            opponents=(),
        )

    of_checks = ("change_lower", "change_upper", "gain_lower", "gain_upper", "random_lower", "random_change", "splits")
    missing = replace(
        audit,
        checks=gone(audit.checks, *of_checks),
        curve=gone(audit.curve, "random", "flagged_lower"),
        slices=gone(audit.slices, "effect_lower", "effect_upper"),
        values=gone(audit.values, "value", "value_lower"),
        explained=tuple(unbounded(e) for e in audit.explained),
        metrics={"accuracy": np.nan},
    )  # fmt: skip
    write_html(missing, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert not re.search(r"\bnan\b|\binf\b", text.split("<style>")[0] + text.split("</style>")[1].split("<script>")[0])
    assert "certified" not in Page(text).text
    assert "nan" not in _terminal(missing).split()


def test_headline_for_one_row_for_other_findings_and_for_what_was_not_looked_for() -> None:
    audit: Audit = made.tabular()
    one = audit.issues[audit.issues["kind"] == "label_error"].head(1)
    assert words.headline(replace(audit, issues=one)) == "1 of 32,561 rows looks mislabelled."
    twins = audit.issues[audit.issues["kind"] == "duplicate"]
    assert (
        words.headline(replace(audit, issues=twins))
        == "None of 32,561 rows looks mislabelled; 24 stand out for other reasons."
    )
    slices = audit.issues[audit.issues["kind"] == "slice"]
    assert words.headline(replace(audit, issues=slices)) == "None of 32,561 rows looks mislabelled; 2 slices mislead."
    unlooked = replace(audit, issues=twins, skipped=(("label_error", "one class only"),))
    assert words.headline(unlooked).startswith("Label errors were not looked for; 24 stand")


def test_verdict_knows_which_way_is_better() -> None:
    gain = {"gain_lower": 0.1, "gain_upper": 0.2}
    assert words.verdict({"metric": "accuracy", **gain}) == "helps"
    assert words.verdict({"metric": "log loss", **gain}) == "hurts"
    assert words.verdict({"metric": "root mean squared error", "gain_lower": -2.0, "gain_upper": -1.0}) == "helps"
    assert words.verdict({"metric": "R²", "gain_lower": -2.0, "gain_upper": 1.0}) == "unclear"


def test_a_check_without_rows_is_not_told(tmp_path: Path) -> None:
    audit: Audit = made.tabular()
    none = replace(audit, checks=audit.checks.assign(rows=0))
    assert words.confirmed(none) == "The self-check had no rows to act on."
    write_html(none, tmp_path / "page.html")
    assert "relabelling 0" not in (tmp_path / "page.html").read_text("utf-8").lower()
    assert "relabelling 0" not in _terminal(none).lower()


def test_outcome_says_lowers_and_leaves() -> None:
    check = made.regression().checks.iloc[0].to_dict()
    assert "lowers held-out root mean squared error by 853 (95 % CI 538 to 1,168)" in words.outcome(check)
    check |= {"change_lower": -5.0, "change_upper": 3.0, "change": -1.0}
    assert "leaves held-out root mean squared error about where it was: −1 (95 % CI −5 to 3)" in words.outcome(check)


def _terminal(audit: Audit, width: int = 80) -> str:
    out = io.StringIO()
    summarise(audit, Console(file=out, width=width, color_system=None), "out/report.html")
    return out.getvalue()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [60, 80, 140])
def test_terminal_fits_its_width(name: str, width: int) -> None:
    lines = _terminal(getattr(made, name)(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[-1].strip() == "Look next: out/report.html"


def test_terminal_tells_the_verdict_and_the_worst_rows() -> None:
    audit: Audit = made.tabular()
    text = " ".join(_terminal(audit).split())
    assert words.sentence(audit) in text
    for said in (
        "likely label errors 312",
        "better than chance",
        "no clear difference",
        "+0.5 to +1.1",
        "mturk-batch-7",
    ):
        assert said in text
    assert f"row {audit.issues['row'].iloc[0]} labelled" in text


def test_terminal_shows_markup_and_control_characters_literally() -> None:
    text = _terminal(made.hostile(), 3000)
    assert text.count("[bold red]x[/bold red]") == text.count("onerror=alert(2)>") > 30
    assert "\x1b" not in text and "\u202e" not in text


# --- in a real browser -------------------------------------------------------------------------------------------------

MEASURE = """
<script>
const measure = (opened) => {
  for (const fold of document.querySelectorAll("details")) fold.open = opened;
  const wide = document.documentElement.clientWidth, over = [];
  const scrolls = (e) => { for (; e; e = e.parentElement) if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return true; };
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && (box.right > wide + 0.5 || box.left < -0.5) && !e.closest(".jump") && !scrolls(e.parentElement))
      over.push(e.tagName + "." + (e.getAttribute("class") || "") + " " + Math.round(box.right));
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && !e.closest("svg") && !scrolls(e)) over.push("inside " + e.tagName);
  }
  const said = { opened, inner: innerWidth, scroll: document.documentElement.scrollWidth, over: over.slice(0, 9),
                 height: document.documentElement.scrollHeight };
  parent.postMessage(JSON.stringify(said), "*");
};
addEventListener("load", () => { measure(false); measure(true); });
</script></body>"""
FRAME = """<!doctype html><body><pre id="said"></pre><script>
addEventListener("message", (event) => {{ document.getElementById("said").textContent += event.data + "\\n"; }});
</script>{frames}</body>"""


@needs_chromium
def test_nothing_overflows_at_1400_and_at_420_pixels(pages: dict[str, Path], tmp_path: Path) -> None:
    frames = ""
    for name, path in pages.items():
        text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text("utf-8"))
        (tmp_path / path.name).write_text(text.replace("</body>", MEASURE), "utf-8")
        for width in (1400, 420):
            frames += f'<iframe src="{name}.html" width="{width}" height="900" style="border:0"></iframe>'
    (tmp_path / "frames.html").write_text(FRAME.format(frames=frames), "utf-8")
    dom = dom_of(tmp_path / "frames.html", tmp_path)
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    measured: list[dict[str, Any]] = [json.loads(line) for line in unescape(found[1]).splitlines()]
    assert sorted(m["inner"] for m in measured) == [420] * 2 * len(ALL) + [1400] * 2 * len(ALL)
    assert [m for m in measured if m["scroll"] > m["inner"] or m["over"]] == []
    assert all(m["height"] > 900 for m in measured)


@needs_chromium
def test_policy_lets_the_page_s_own_style_and_script_through_and_nothing_else(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    text = pages["hostile"].read_text("utf-8")
    slipped = text.replace("</main>", "</main><p id='slipped'></p><script>document.title = 'slipped'</script>")
    (tmp_path / "slipped.html").write_text(slipped, "utf-8")
    dom = dom_of(tmp_path / "slipped.html", tmp_path)
    assert "<title>slipped" not in dom and 'id="slipped"' in dom
    assert re.search(r"<th[^>]*><button", dom), "the page's own script did not run"
