"""A student on a hub: what is sent, once and privately, and what happens where the hub or the network fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.errors import HubError, PublishError
from distill.models import Student
from distill.publish import publish_run
from distill.upload import Upload, upload_folder

from ..fake_hub import TOKEN, FakeHub
from .conftest import TO

# huggingface_hub's own, of the way its network library is called.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

PUBLISHED = {
    "README.md",
    "compression.png",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "provenance.json",
    "recipe.yaml",
    "report.html",
    "report.json",
    "report.md",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_one_private_commit_holds_exactly_the_rendered_folder(hub, publish, tmp_path):
    rendered = publish(dry_run=True, out=tmp_path / "dry")
    assert hub.asked == []
    done = publish()
    repository = hub.repositories[TO]
    assert repository.private
    assert len(repository.commits) == 2  # the hub's own, and this one
    assert done.upload.changed
    assert done.upload.commit == repository.commits[-1][0]
    stored = {name: content for name, content in repository.files.items() if name != ".gitattributes"}
    assert set(stored) == PUBLISHED
    assert stored == {file.name: file.read_bytes() for file in (tmp_path / "dry").iterdir()}
    assert done.files == rendered.files == {name: len(content) for name, content in stored.items()}
    assert hub.cards == [stored["README.md"].decode()]


def test_no_validation_example_is_published(publish, ones_own, tmp_path):
    report = json.loads((ones_own / "report.json").read_text())
    said = {"answer": "contradiction", "confidence": 0.9}
    quoted = {
        "id": "7",
        "gold": "neutral",
        "teacher": said,
        "student": said,
        "excerpt": "Somebody wrote this.",
    }
    report["agreement"]["cb"]["examples"] = [quoted]
    (ones_own / "report.json").write_text(json.dumps(report))
    publish(ones_own, dry_run=True, out=tmp_path / "dry")
    assert {file.name for file in (tmp_path / "dry").iterdir()} == PUBLISHED
    for file in (tmp_path / "dry").iterdir():
        assert b"Somebody wrote this." not in file.read_bytes(), file


def test_published_again_the_same_run_changes_nothing(hub, publish):
    first = publish()
    hub.asked.clear()
    again = publish()
    assert not again.upload.changed
    assert again.upload.commit == first.upload.commit
    assert [line for line in hub.asked if not line.startswith("GET")] == []


def test_another_student_in_the_same_place_leaves_nothing_of_the_first(hub, publish, ones_own):
    (ones_own / "student" / "cb" / "chat_template.jinja").write_text("{{ messages }}")
    publish(ones_own)
    assert "chat_template.jinja" in hub.repositories[TO].files
    publish(task="copa")
    repository = hub.repositories[TO]
    assert set(repository.files) == PUBLISHED | {".gitattributes"}
    assert json.loads(repository.files["config.json"])["architectures"] == ["BertForMultipleChoice"]
    assert len(repository.commits) == 3


def test_a_repository_that_is_not_ours_alone_or_public_is_left_as_it_is(hub, publish):
    publish(private=False)
    repository = hub.repositories[TO]
    assert not repository.private
    before = len(repository.commits)
    with pytest.raises(PublishError, match="everybody can see it; say --public"):
        publish()
    repository.commit({**repository.files, "pytorch_model.bin": b"pickle"})
    with pytest.raises(PublishError, match=r"holds pytorch_model\.bin, which distill does not publish"):
        publish(private=False)
    assert len(repository.commits) == before + 1


@pytest.fixture(scope="module")
def rendered(finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is published of the run."""
    folder = tmp_path_factory.mktemp("rendered") / "cb"
    names = {"task": "cb", "license": "mit", "license_of": {"tiny-bert": "mit"}}
    publish_run(finished, TO, dry_run=True, out=folder, **names)
    return folder


@pytest.fixture
def upload(rendered):
    """Uploading it."""

    def call() -> Upload:
        return upload_folder(rendered, TO, private=True, message="a student")

    return call


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("api/repos/create", 500),
        ("api/repos/create", "lose"),
        ("info/lfs/objects/batch", 429),
        ("store/", 503),
        ("store/", "drop"),
        (f"models/{TO}/commit", 429),
        (f"models/{TO}/commit", 500),
        (f"models/{TO}/commit", "drop"),
        (f"models/{TO}/commit", "lose"),
    ],
)
def test_what_passes_is_tried_again_and_commits_once(hub, upload, where, failure):
    hub.failures[where] = [failure]
    done = upload()
    repository = hub.repositories[TO]
    assert hub.failures[where] == []
    assert len(repository.commits) == 2
    assert done.commit == repository.commits[-1][0]
    assert set(repository.files) == PUBLISHED | {".gitattributes"}


def test_after_three_more_tries_it_is_given_up_and_can_be_done_later(hub, upload):
    hub.failures[f"models/{TO}/commit"] = [500] * 4
    with pytest.raises(HubError, match=rf"^{TO}: the hub fails \(500\); try again later$"):
        upload()
    assert sum("commit/main" in line for line in hub.asked) == 4
    assert len(hub.repositories[TO].commits) == 1
    hub.asked.clear()
    upload()
    assert len(hub.repositories[TO].commits) == 2
    assert not any(line.startswith("PUT") for line in hub.asked)  # the weights were there already


@pytest.mark.parametrize(
    ("where", "status", "message"),
    [
        ("api/models", 401, "does not know who asks; type: hf auth login"),
        (f"models/{TO}/commit", 403, "does not let this token write there"),
        (f"models/{TO}/commit", 409, "somebody else wrote there at the same time"),
        (f"models/{TO}/commit", 412, "somebody else wrote there at the same time"),
    ],
)
def test_a_refusal_is_one_line_and_not_tried_again(hub, upload, where, status, message):
    hub.failures[where] = [status]
    with pytest.raises(PublishError, match=message) as told:
        upload()
    assert "\n" not in str(told.value)
    assert sum(where in line for line in hub.asked) == 1 or where == "api/models"
    assert all(len(each.commits) == 1 for each in hub.repositories.values())


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(hub, upload, monkeypatch):
    real = FakeHub.of_model

    def meanwhile(self, name, rest, query, body):
        repository = self.repositories.get(name)
        if rest[:1] == ["commit"] and len(repository.commits) == 1:
            repository.commit({**repository.files, "README.md": b"theirs"})
        return real(self, name, rest, query, body)

    monkeypatch.setattr(FakeHub, "of_model", meanwhile)
    with pytest.raises(PublishError, match="somebody else wrote there at the same time"):
        upload()
    assert hub.repositories[TO].files["README.md"] == b"theirs"


def test_metadata_that_the_hub_does_not_take_is_told_before_anything_is_sent(hub, upload):
    hub.failures["validate-yaml"] = [400]
    with pytest.raises(PublishError, match="Invalid metadata in README"):
        upload()
    assert not any(line.startswith("PUT") for line in hub.asked)


def test_other_peoples_names_and_malformed_ones_are_refused(hub, rendered):
    with pytest.raises(PublishError, match="does not let this token write there"):
        upload_folder(rendered, "bob/model", private=True, message="a student")
    for name in ("small", "a/b/c", "../x/y", "ada/", "ada/a b"):
        with pytest.raises(PublishError, match="must be OWNER/NAME"):
            upload_folder(rendered, name, private=True, message="a student")


FRESH = """
import sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder = snapshot_download(sys.argv[1])
model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
inputs = AutoTokenizer.from_pretrained(folder)("I saw the dog", "there is a dog", return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).logits.numpy().tobytes().hex())
"""


def test_the_command_publishes_what_a_fresh_process_downloads_to_bitwise_the_same_logits(
    hub, finished, tmp_path
):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS", "XDG_"))}
    home = tmp_path / "home"
    home.mkdir()
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HOME": str(home)}

    def started(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=kept | settings,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    options = ("--task", "cb", "--license", "mit", "--license-of", "tiny-bert=mit", "--to", TO)
    done = started("-m", "distill", "publish", str(finished), *options)
    assert done.returncode == 0, done.stderr
    assert f"published: {hub.endpoint}/{TO} at {hub.repositories[TO].commits[-1][0]}" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    downloaded = started("-c", FRESH, TO)
    assert downloaded.returncode == 0, downloaded.stderr

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = finished / "student" / "cb"
    model = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    inputs = AutoTokenizer.from_pretrained(folder)("I saw the dog", "there is a dog", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy().tobytes().hex()
    assert downloaded.stdout.split() == [expected]


def test_the_token_is_in_nothing_that_is_said_or_sent(hub, upload, capfd, caplog):
    for status in (401, 403, 500):
        hub.failures["api/models"] = [status] * 5
        with pytest.raises((PublishError, HubError)) as told:
            upload()
        assert TOKEN not in str(told.value)
        hub.failures.clear()
    upload()
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err + caplog.text
    assert all(TOKEN.encode() not in content for content in hub.repositories[TO].files.values())


def test_a_student_of_ones_own_script_can_be_pushed(hub, new_student):
    student: Student = new_student()
    url = student.push_to_hub("ada/mine", license="mit")
    assert url == f"{hub.endpoint}/ada/mine"
    repository = hub.repositories["ada/mine"]
    assert repository.private
    assert "Nothing was measured of it" in repository.files["README.md"].decode()
    assert {"config.json", "model.safetensors", "tokenizer.json", "provenance.json"} <= set(repository.files)
    assert student.push_to_hub("ada/mine", license="mit") == url
    assert len(repository.commits) == 2


def test_without_a_connection_it_says_so(hub, upload, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=f"^{TO}: the hub cannot be reached"):
        upload()


def test_the_folder_of_a_user_is_only_read(hub, publish, finished):
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*")}

    before = state()
    publish()
    assert state() == before
