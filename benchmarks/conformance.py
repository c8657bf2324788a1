"""Which of our losses' laws do the distillation losses of other libraries obey?

    pip install --no-deps trl liger-kernel textbrewer torchtune nvidia-modelopt silverspoon-kd
    pip install --no-deps tensorboard absl-py protobuf torchao torchdata omegaconf antlr4-python3-runtime==4.9.3
    pip install --no-deps sentencepiece tiktoken blobfile kagglehub pulp nvidia-ml-py
    pip install --no-deps requests urllib3 idna certifi charset-normalizer
    python benchmarks/conformance.py --json conformance.json

The other packages are what the peers import on the way to their losses; --no-deps keeps torch as it is.

Each loss is the library's own code, called as its documentation says, with nothing added but what turns two logits
matrices into its arguments. The same laws as `distill conformance`. A library that is not installed is skipped and
said so. Prints two Markdown tables: law by loss, and for each loss what breaks.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from distill.losses.conformance import Conformance, conformance
from torch import Tensor

from distill.losses import ForwardKL, Rows

MARKS = {"obeyed": "yes", "broken": "**no**", "not stated": "–"}


def distill_forward_kl() -> Callable[..., Tensor]:
    """Return our own ForwardKL as a function of logits and a mask."""

    def loss(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        rows = Rows(student=student, teacher=teacher, weight=mask.flatten())
        return rows.mean(ForwardKL(temperature=temperature)(rows))

    return loss


def trl_gkd(beta: float) -> Callable[..., Tensor]:
    """Return GKDTrainer's loss at one beta; 0 is the forward KL."""
    from trl.experimental.gkd import GKDTrainer

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        return GKDTrainer.generalized_jsd_loss(
            student, teacher, labels=labels, beta=beta, temperature=temperature
        )

    return loss


def liger_fused(beta: float) -> Callable[..., Tensor]:
    """Return the fused linear loss without its hard-label part, on hidden states and output matrices made of logits.

    Logits are their own hidden states under an identity matrix; with many classes they are the output matrix of
    identity hidden states. A logit of −inf would be multiplied by zeros, so it goes in as −1e4.
    """
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def hidden_and_matrix(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.flatten(0, -2)
        logits = logits.masked_fill(logits == -torch.inf, -1e4)
        smaller = min(logits.shape, default=0) if logits.shape[1] > 1000 else logits.shape[1]
        identity = torch.eye(smaller, dtype=logits.dtype)
        return (logits, identity) if smaller == logits.shape[1] else (identity, logits.T)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
        fused = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature, compiled=False
        )
        return fused(*hidden_and_matrix(student), *hidden_and_matrix(teacher), labels.flatten())

    return loss


def textbrewer(name: str) -> Callable[..., Tensor]:
    """Return a loss of textbrewer.losses."""
    import textbrewer.losses

    return getattr(textbrewer.losses, name)


def torchtune(name: str) -> Callable[..., Tensor]:
    """Return a loss of torchtune.modules.loss; it takes (N, V)."""
    import torchtune.modules.loss

    return getattr(torchtune.modules.loss, name)()


def modelopt() -> Callable[..., Tensor]:
    """Return ModelOpt's logits loss with its defaults."""
    from modelopt.torch.distill import LogitsDistillationLoss

    return LogitsDistillationLoss()


def silverspoon(name: str) -> Callable[..., Tensor]:
    """Return a loss of silverspoon_kd; the factory takes the temperature."""
    import silverspoon_kd.losses as losses

    def loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        return getattr(losses, name)(temperature=temperature)(student, teacher)

    return loss


PEERS: list[tuple[str, str, Callable[[], Callable[..., Any]]]] = [
    ("distill", "ForwardKL", distill_forward_kl),
    ("trl", "GKD β=0", lambda: trl_gkd(0.0)),
    ("trl", "GKD β=0.5", lambda: trl_gkd(0.5)),
    ("liger-kernel", "fused JSD β=0", lambda: liger_fused(0.0)),
    ("liger-kernel", "fused JSD β=0.5", lambda: liger_fused(0.5)),
    ("textbrewer", "kd_ce_loss", lambda: textbrewer("kd_ce_loss")),
    ("torchtune", "ForwardKLLoss", lambda: torchtune("ForwardKLLoss")),
    ("torchtune", "ReverseKLLoss", lambda: torchtune("ReverseKLLoss")),
    ("nvidia-modelopt", "LogitsDistillationLoss", modelopt),
    ("silverspoon-kd", "kl_divergence_loss", lambda: silverspoon("kl_divergence_loss")),
    ("silverspoon-kd", "jsd_loss", lambda: silverspoon("jsd_loss")),
]


def main() -> None:
    """Run every loss that is there and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="also write all findings here")
    arguments = parser.parse_args()
    results: dict[str, Conformance] = {}
    skipped: dict[str, str] = {}
    for package, loss, make in PEERS:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            skipped[f"{package} {loss}"] = "not installed"
            continue
        try:
            results[f"{package} {version} {loss}"] = conformance(make())
        except Exception as error:  # noqa: BLE001 - a peer that does not work here is skipped, and said
            skipped[f"{package} {version} {loss}"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}\n")
    print(as_markdown(results))
    for name, why in skipped.items():
        print(f"skipped: {name} ({why})")
    if arguments.json:
        plain = {name: result.as_dict() for name, result in results.items()}
        arguments.json.write_text(
            json.dumps({"losses": plain, "skipped": skipped}, indent=1, ensure_ascii=False)
        )


def as_markdown(results: dict[str, Conformance]) -> str:
    """Law by loss, then a line for each broken law with its numbers."""
    laws = [finding.law for finding in next(iter(results.values())).findings]
    found = {name: {finding.law: finding for finding in result.findings} for name, result in results.items()}
    lines = ["| law | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    for law in laws:
        marks = [MARKS[found[name][law].verdict] for name in results]
        if any(mark != MARKS["not stated"] for mark in marks):
            lines.append(f"| {law} | " + " | ".join(marks) + " |")
    counts = [f"{result.count('obeyed')} / {result.count('broken')}" for result in results.values()]
    lines += ["| obeyed / broken | " + " | ".join(counts) + " |", "", "| loss | what breaks |", "|---|---|"]
    for name, result in results.items():
        broken = [
            f"**{finding.law}** {finding.found.removesuffix(' (ordinary rows)').replace('|', '¦')}"
            for finding in result.findings
            if finding.verdict == "broken"
        ]
        if broken:
            lines.append(f"| {name} | {'; '.join(broken)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
