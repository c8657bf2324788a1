"""A finished run's student to the hub: licences first, then the folder, then one commit."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.errors import PublishError
from distill.publish.folder import write_folder
from distill.publish.licenses import check_license
from distill.publish.subject import Subject
from distill.run_folder import RunFolder
from distill.upload import Upload, upload_folder


@dataclass(frozen=True)
class Publication:
    """What was published, or would be.

    Attributes:
        repository: OWNER/NAME.
        files: names and bytes.
        upload: what came of it; None of a dry run.
    """

    repository: str
    files: Mapping[str, int]
    upload: Upload | None


def publish_run(
    run: str | Path,
    to: str | None = None,
    *,
    license: str | None = None,
    task: str | None = None,
    private: bool = True,
    license_of: Mapping[str, str] | None = None,
    despite_license: Collection[str] = (),
    language: str | None = None,
    base_model: str | None = None,
    dry_run: bool = False,
    out: str | Path | None = None,
) -> Publication:
    """Publish the student of a finished run: weights, tokenizer, card, report and recipe, in one commit.

    Published again, the same run changes nothing. Of several seeds the first one's student is published, which is the
    one that a run keeps; the card gives its own scores and the mean.

    Args:
        run: the run's folder.
        to: OWNER/NAME. A repository that is not there is made. Needed but for a dry run.
        license: of the student, as the hub writes it: "apache-2.0".
        task: whose student; needed where the run has several tasks. A repository holds one model, because the hub
            shows, counts and loads (`from_pretrained("OWNER/NAME")`) one model a repository.
        private: what a new repository is.
        license_of: licences of the models that the student comes from, by name, where their files do not say.
        despite_license: licences of those models to be passed over though they do not allow `license`.
        language: of the texts, such as "en"; None takes the task's own.
        base_model: hub id of the model that the student started from, where the run read it from a folder or package.
        dry_run: write and check everything, and ask nothing of the network.
        out: an empty or new folder where what is published is kept; None keeps nothing.

    Raises:
        PublishError: no licence, one that an ancestor's does not allow, a file that is not to be published, a name of a
            home folder, or a hub that refuses.
        HubError: the hub cannot be reached.
        DistillError: the run is not finished.
    """
    if to is None and not dry_run:
        raise PublishError("--to: is missing; say where to, as OWNER/NAME, or look first with --dry-run")
    subject = Subject.of_run(RunFolder(run), task)
    repository = to or f"OWNER/{subject.recipe.name}"
    check_license(license, ())
    assert license is not None  # noqa: S101 - checked
    ancestors = subject.ancestors(license_of or {}, network=not dry_run)
    check_license(license, ancestors, despite_license)
    with _folder(out) as folder:
        files = write_folder(
            subject,
            folder,
            repository,
            license=license,
            ancestors=ancestors,
            language=language,
            base_model=base_model,
        )
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        upload = None
        if not dry_run:
            message = f"Student of {subject.report['teacher']['name']} on {subject.task.title}, by distill"
            upload = upload_folder(folder, repository, private=private, message=message)
    return Publication(repository, sizes, upload)


@contextlib.contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="distill-publish-") as made:
            yield Path(made)
        return
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PublishError(f"--out {folder}: is there already and not empty; choose another")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
