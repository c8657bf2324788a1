"""Numbers as a page shows them, each with where it stands in the run's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup


class Numbers:
    """Writes numbers of report.json and metrics.jsonl into HTML and SVG.

    Each stands in an element that says where it is from and how it was rounded, so that whoever doubts a page can
    compare it: `data-json` is the JSON pointer (RFC 6901) into report.json, or `data-log` that into the list of the lines
    of metrics.jsonl; the text is Python's `format(value * data-times, data-format)`.

    Args:
        report: the content of report.json.
        log: the lines of metrics.jsonl.
    """

    def __init__(self, report: Mapping[str, Any], log: Sequence[Mapping[str, Any]]):
        self._files = {"json": report, "log": log}

    def value(self, *path: str | int, file: str = "json") -> Any:
        """What stands at a path, or None."""
        found: Any = self._files[file]
        for part in path:
            try:
                found = found[part]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def __call__(
        self,
        *path: str | int,
        spec: str = ".1f",
        times: float = 1,
        file: str = "json",
        tag: str = "span",
        attributes: Mapping[str, Any] | None = None,
        missing: str = "–",
    ) -> Markup:
        """The number at a path, or a dash where there is none.

        Args:
            path: keys and positions.
            spec: as Python's `format` takes it.
            times: what it is multiplied with.
            file: "json" or "log".
            tag: the element's name; `text` and `tspan` inside an SVG.
            attributes: more of the element's.
            missing: stands where there is no such number.
        """
        value = self.value(*path, file=file)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Markup("{}").format(missing)
        pointer = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
        more = Markup("").join(
            Markup(' {}="{}"').format(key, each) for key, each in (attributes or {}).items()
        )
        return Markup('<{0} data-{1}="{2}" data-format="{3}" data-times="{4}"{5}>{6}</{0}>').format(
            tag, file, pointer, spec, f"{times:g}", more, format(value * times, spec)
        )
