"""report.html: every number is the run's, nothing is loaded, nothing that a text says is obeyed, and it fits a phone."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from distill.report import Report, write_report
from distill.report.page import to_html
from distill.run_folder import RunFolder

from .chromium import Browser, browser, executable

HOSTILE = "<script>document.title = 'taken'</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.numbers: list[tuple[dict[str, str | None], str]] = []
        self._number: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._number = dict(attrs) if {"data-json", "data-log"} & {name for name, _ in attrs} else None

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self._number is not None:
            self.numbers.append((self._number, data))
            self._number = None


def standing_at(pointer: str, content: Any) -> Any:
    """RFC 6901."""
    assert pointer.startswith("/")
    for part in pointer[1:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        content = content[int(part)] if isinstance(content, list) else content[part]
    return content


def wrong_numbers(
    numbers: list[tuple[dict[str, Any], str]], folder: Path
) -> list[tuple[dict[str, Any], str]]:
    """Those of a page that are not what its files say."""
    report = json.loads((folder / "report.json").read_text())
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (marks, shown)
        for marks, shown in numbers
        if format(
            standing_at(marks["data-json"], report) * float(marks["data-times"])
            if marks.get("data-json")
            else standing_at(marks["data-log"], log) * float(marks["data-times"]),
            marks["data-format"] if marks["data-format"] != ",d" and marks["data-format"] != "d" else ",.0f",
        )
        != shown
    ]


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    if executable() is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with browser() as page:
        yield page


def test_every_number_is_what_the_files_say(finished: Report):
    page = Page((finished.folder / "report.html").read_text())
    assert wrong_numbers(page.numbers, finished.folder) == []
    marked = {marks.get("data-json") for marks, _ in page.numbers}
    for role in ("teacher", "student", "baseline"):
        assert f"/{role}/score/mean" in marked
        for task in ("cb", "copa", "rte"):
            assert f"/{role}/tasks/{task}/accuracy" in marked
            assert f"/calibration/tasks/{task}/{role}/ece" in marked
    assert {"/verdict/tasks/cb/ci95/0", "/agreement/cb/same", "/shapes/cb/student/layers"} <= marked
    assert any(marks.get("data-log") for marks, _ in page.numbers)
    assert len(page.numbers) > 200


def test_the_verdict_stands_first_and_the_rest_is_there(finished: Report):
    text = " ".join(" ".join(Page((finished.folder / "report.html").read_text()).texts).split())
    at = [
        text.index(words)
        for words in (
            finished.verdict,
            "Read this before believing the numbers",
            "Teacher, student, and the student alone",
            "Scores by task",
            "Where student and teacher differ",
            "How far their confidence can be believed",
            "share of the gradient",
            "What each term contributed before the training",
            "What the student is made of",
            "0 ← 0, 1 ← 3",
            "Data, and what was cut",
            "distill run recipe.yaml --out FOLDER",
        )
    ]
    assert at == sorted(at)
    for warning in finished.data["warnings"]:
        assert warning in text
    for version in finished.data["environment"]["packages"].values():
        assert version in text
    for task in ("cb", "copa", "rte"):
        for example in finished.data["agreement"][task]["examples"]:
            assert example["excerpt"]
            assert example["excerpt"] in text


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_whole_at_any_width_and_loads_nothing(
    finished: Report, window: Browser, width: int
):
    page = finished.folder / "report.html"
    window.open(page, width)
    assert window.value("innerWidth") == width
    assert window.value("document.documentElement.scrollWidth") == width
    outside = window.value(
        "[...document.querySelectorAll('body *')].filter(each => each.getBoundingClientRect().right > innerWidth + 1)"
        ".map(each => each.outerHTML.slice(0, 80))"
    )
    assert outside == []
    tables = "[...document.querySelectorAll('td, th')].filter(each => each.scrollWidth > each.clientWidth + 1).length"
    assert window.value(tables) == 0
    names = [name for name, _ in window.happened]
    assert not [
        name
        for name in names
        if name in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    ]
    asked = [told["request"]["url"] for name, told in window.happened if name == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]
    shown = window.value(
        "[...document.querySelectorAll('[data-json], [data-log]')].map(each => [{...Object.fromEntries([...each.attributes]"
        ".map(a => [a.name, a.value]))}, each.textContent])"
    )
    assert len(shown) > 200
    assert wrong_numbers(shown, finished.folder) == []


def test_printed_it_has_no_table_cut_off(finished: Report, window: Browser, tmp_path: Path):
    window.open(finished.folder / "report.html", 700)  # A4 less its margins
    window.ask("Emulation.setEmulatedMedia", media="print")
    try:
        assert window.value("document.documentElement.scrollWidth") <= 700
        assert (
            window.value("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"
        )
        window.pdf(tmp_path / "report.pdf")
    finally:
        window.ask("Emulation.setEmulatedMedia", media="")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def poisoned(value: Any) -> Any:
    """The same with every text made hostile."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + HOSTILE if isinstance(value, str) else value


def test_no_text_of_a_run_becomes_html(finished: Report, window: Browser, tmp_path: Path):
    log = RunFolder(finished.folder).read_metrics()
    log += [
        {"fit": "student-cb-seed0", "step": 3, f"loss/{HOSTILE}": 1.0, f"gradient_share/{HOSTILE}": 0.5},
        {"fit": f"student-{HOSTILE}-seed0", "step": 3, "loss/labels": 1.0},
    ]
    plain = Page((finished.folder / "report.html").read_text())
    text = to_html(poisoned(finished.data), log)
    page = Page(text)
    assert text.count("&lt;script&gt;") > 20
    assert set(page.tags) == set(plain.tags)
    assert "script" not in page.tags
    assert {name for name, _ in page.attributes} == {name for name, _ in plain.attributes}
    (tmp_path / "hostile.html").write_text(text)
    window.open(tmp_path / "hostile.html", 390)
    assert window.value("document.scripts.length") == 0
    assert window.value("document.querySelectorAll('img').length") == 0
    assert window.value("document.documentElement.scrollWidth") == 390


def test_the_same_run_gives_the_same_bytes(finished: Report, tmp_path: Path):
    again = Path(shutil.copytree(finished.folder, tmp_path / "again"))
    (again / "report.html").unlink()
    write_report(again)
    assert (again / "report.html").read_bytes() == (finished.folder / "report.html").read_bytes()
    assert str(finished.folder) not in (again / "report.html").read_text()


def test_what_a_report_does_not_hold_is_left_out(finished: Report):
    log = RunFolder(finished.folder).read_metrics()
    for key in finished.data:
        page = Page(to_html({name: value for name, value in finished.data.items() if name != key}, log))
        assert "main" in page.tags, key
    for role in ("teacher", "student"):
        for key in finished.data[role]:
            less = copy.deepcopy(finished.data)
            del less[role][key]
            assert "main" in Page(to_html(less, log)).tags, key
    nothing = " ".join(Page(to_html({}, [])).texts)
    assert "How to make it again" in nothing
    assert "Scores by task" not in nothing
    assert "Training" not in nothing
    assert "polyline" in to_html({}, log)  # of a run that is not finished: its curves


def test_what_a_model_costs_to_run_is_shown_where_it_was_measured(finished: Report):
    measured = copy.deepcopy(finished.data)
    for number, role in enumerate(("teacher", "student", "baseline"), 1):
        measured[role] |= {
            "throughput": {
                "batch": 32,
                "examples_per_second": 12.5 * number,
                "tokens_per_second": 4321.0 * number,
            },
            "flops": {"per_token": 21_120_000.0 / number, "tokens": 84},
            "peak_memory": {"weights": 9_000_000, "batch_1": 10_500_000, "batch_32": 77_700_000 // number},
        }
    measured["measured"] = {
        "task": "cb",
        "passes": {"batch_1": 25, "batch_32": 5},
        "threads": 2,
        "processor": "EPYC",
        "device": "cpu",
    }
    measured["compression"] |= {"flops_per_token": 2.0, "peak_memory": {"batch_1": 1.0, "batch_32": 2.0}}
    words = " ".join(" ".join(Page(to_html(measured, [])).texts).split())
    for shown in ("12.5", "8,642", "21.12", "2.00 ×", "77.7", "the median of 25 passes", "EPYC"):
        assert shown in words, shown
    plain = " ".join(Page((finished.folder / "report.html").read_text()).texts)
    assert ("FLOPs" in plain) == ("flops" in finished.data["teacher"])


def test_a_run_from_before_excerpts_shows_its_examples_without(finished: Report, tmp_path: Path):
    older = Path(shutil.copytree(finished.folder, tmp_path / "older"))
    (older / "excerpts.json").unlink()
    report = write_report(older).data
    for block in report["agreement"].values():
        assert all("excerpt" not in example for example in block["examples"])
    assert "blockquote" not in Page((older / "report.html").read_text()).tags


def test_a_torn_line_of_the_log_is_left_out(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"fit": "student-cb-seed0", "step": 1, "loss/labels": 2.0}\n{"fit": "stu'
    )
    assert len(RunFolder(tmp_path).read_metrics()) == 1
    assert RunFolder(tmp_path / "none").read_metrics() == []
