"""The folder that is published: copied file by file from a list of names, and looked at before anybody else does."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from distill.disk import refuse_links_out, refused
from distill.errors import PublishError
from distill.manifest import MANIFEST, seal, verified
from distill.models.adapter import ADAPTER_CONFIG, weights_file
from distill.models.folder_check import read_object
from distill.models.loading import load_tokenizer, quiet_transformers
from distill.models.source import MODEL_KIND, find_model
from distill.publish.card import model_card
from distill.publish.licenses import Ancestor
from distill.publish.subject import Subject, without_folders
from distill.report.markdown import to_markdown
from distill.report.page import to_html
from distill.run_folder import ONNX_FILE
from distill.upload import MODEL_FILES

PLOT = "compression.png"
# Where user names and the folders of employers stand.
HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[^/\\\s]+")
# Texts that people read or programs are told by; a tokenizer's words may look like anything.
LOOKED_THROUGH = (".md", ".html", ".yaml", ".json", ".jinja")


def write_folder(
    subject: Subject,
    folder: Path,
    repository: str,
    *,
    license: str,
    ancestors: Sequence[Ancestor],
    language: str | None = None,
    base_model: str | None = None,
) -> list[Path]:
    """Write what is published of a student into an empty folder.

    The student's own files are copied as they are, but for the folders of this machine that a provenance may name. The
    weights are loaded once, as whoever downloads them will load them.

    Args:
        subject: what is published.
        folder: there and empty.
        repository: OWNER/NAME, which the card's code loads.
        license: of the student.
        ancestors: its teachers and the model it started from, with their licences.
        language: see `model_card`.
        base_model: see `model_card`.

    Returns:
        The files, in name order.

    Raises:
        CheckpointError: a file of the student is not the one that the run wrote.
        PublishError: the student's folder holds something that is not published, weights that its model has not, or
            other weights than the run scored; or a text names a home folder of this machine.
        ResourceError: the folder cannot be written.
    """
    refuse_links_out(subject.folder.path)
    student = subject.folder.model("student", subject.task.name)
    check_student(subject, student)
    adapter = (student / ADAPTER_CONFIG).is_file()
    with refused(folder):
        for file in _students(student):
            if file.name == "provenance.json":
                _write_json(folder / file.name, without_folders(read_object(str(student), file)))
            else:
                (folder / file.relative_to(student)).parent.mkdir(exist_ok=True)
                shutil.copyfile(file, folder / file.relative_to(student))
        seal(folder, MODEL_KIND)  # whoever downloads it can tell whether it is whole
        if (subject.folder.path / PLOT).is_file():
            shutil.copyfile(subject.folder.path / PLOT, folder / PLOT)
        _write_json(folder / "report.json", subject.report)
        page = to_html(subject.report, subject.folder.read_metrics())
        (folder / "report.html").write_text(page, encoding="utf-8")
        (folder / "report.md").write_text(to_markdown(subject.report), encoding="utf-8")
        (folder / "recipe.yaml").write_text(_recipe(subject), encoding="utf-8")
        card = model_card(
            subject,
            repository,
            license=license,
            ancestors=ancestors,
            tokenizer=load_tokenizer(find_model(str(student))),
            language=language,
            base_model=base_model,
            adapter=adapter,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files:
        _refuse_private(file)
    return files


def check_student(subject: Subject, student: Path) -> None:
    """Refuse a student's folder that is not what the run scored, or that does not load whole and alone.

    Raises:
        PublishError: one line that names the file or the tensors.
        CheckpointError: a file is not the one that was written.
    """
    if not weights_file(student).is_file():
        raise PublishError(f"{student}: holds no student; `distill run` finishes the run")
    _students(student)
    if ONNX_FILE not in verified(student, MODEL_KIND) and (student / ONNX_FILE).exists():
        raise PublishError(
            f"{student / ONNX_FILE}: is not what the run wrote (no manifest names it); remove it"
        )
    expected = subject.fits["student"]["bytes"]
    size = weights_file(student).stat().st_size
    if size != expected:
        raise PublishError(
            f"{weights_file(student)}: is not what the run scored ({size:,} bytes, expected {expected:,}); run it again"
        )
    if (student / ADAPTER_CONFIG).is_file():
        base = read_object(str(student), student / ADAPTER_CONFIG).get("base_model_name_or_path")
        if not isinstance(base, str) or PurePosixPath(base).is_absolute() or Path(base).exists():
            raise PublishError(
                f"{student / ADAPTER_CONFIG}: its base is a folder of this machine, which nobody else has; start the "
                "student from a model of the hub, or use an adapter that is merged, such as LORA"
            )
        return
    import transformers

    with quiet_transformers():
        loaded = getattr(transformers, subject.auto_class).from_pretrained(
            student,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )[1]
    for key, what in (
        ("unexpected_keys", "the model has no place for"),
        ("missing_keys", "lacks"),
        ("mismatched_keys", "the model has another shape for"),
    ):
        if loaded[key]:
            names = ", ".join(sorted(str(each) for each in loaded[key])[:3])
            raise PublishError(
                f"{weights_file(student)}: {what} {names}; a student holds its model's weights and nothing else"
            )


def _students(folder: Path) -> list[Path]:
    """A student's files, without what is made anew: the manifest, and the README that peft writes beside an adapter."""
    files = []
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if name in (MANIFEST, "README.md") or (file.is_dir() and name == Path(ONNX_FILE).parent.as_posix()):
            continue
        if file.is_dir() or name not in MODEL_FILES:
            raise PublishError(
                f"{file}: is no file of a student that distill publishes; look at it, and remove it from there"
            )
        files.append(file)
    return files


def _recipe(subject: Subject) -> str:
    """The run's recipe without the folders of this machine: `output` and `cache` go, of the others the last part stays."""
    import yaml

    said: dict[str, Any] = yaml.safe_load(subject.folder.recipe.read_text(encoding="utf-8"))
    return yaml.safe_dump(
        without_folders({key: value for key, value in said.items() if key not in ("output", "cache")}),
        sort_keys=False,
        allow_unicode=True,
        width=110,
    )


def _refuse_private(file: Path) -> None:
    """Refuse a text that names somebody's home folder, another folder of this machine, or the token."""
    if file.suffix not in LOOKED_THROUGH or file.name in ("tokenizer.json", "vocab.json"):
        return
    from huggingface_hub import get_token

    text = file.read_text(encoding="utf-8")
    found = HOMES.search(text)
    if found is None and file.suffix == ".json":
        found = next((each for each in map(_absolute, _texts(json.loads(text))) if each), None)
    token = get_token()
    if token and token in text:
        raise PublishError(f"{file.name}: holds the hub's token; remove it from the run, and get a new one")
    if found is not None:
        raise PublishError(
            f"{file.name}: names a folder of this machine, {found[0]}; remove it from the run's files"
        )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inside in value.values() if isinstance(value, dict) else value:
            yield from _texts(inside)


def _absolute(text: str) -> re.Match[str] | None:
    return re.fullmatch(r"/[\w.-]+(?:/[\w.-]+)+/?", text)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
