"""The commit that a report names is the checkout's."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.environment import _commit

ONE, TWO = "1" * 40, "2" * 40


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository on a branch, with a second working tree on another, as git lays them out."""
    main, other = tmp_path / "main", tmp_path / "other"
    git = main / ".git"
    own = git / "worktrees" / "other"
    (git / "refs" / "heads").mkdir(parents=True)
    own.mkdir(parents=True)
    other.mkdir()
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "refs" / "heads" / "main").write_text(f"{ONE}\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{TWO} refs/heads/other\n")
    (own / "HEAD").write_text("ref: refs/heads/other\n")
    (own / "commondir").write_text("../..\n")
    (other / ".git").write_text(f"gitdir: {own}\n")
    return tmp_path


def test_a_branch_names_its_commit(checkout: Path):
    assert _commit(checkout / "main") == ONE


def test_a_second_working_tree_names_its_own(checkout: Path):
    assert _commit(checkout / "other") == TWO


def test_a_head_without_a_branch_is_the_commit(checkout: Path):
    (checkout / "main" / ".git" / "HEAD").write_text(f"{TWO}\n")
    assert _commit(checkout / "main") == TWO


def test_an_installed_package_has_none(tmp_path: Path):
    assert _commit(tmp_path) is None
