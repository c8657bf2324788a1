"""Prints what a loss of N rows over V classes needs at its peak beyond the logits, in units of the student's.

    python memory_of_a_loss.py forward_kl 512 50000

In a process of its own, which has not yet asked the system for memory to reuse.
"""

import sys
from pathlib import Path

import torch
from pydantic import TypeAdapter

from distill.losses import AnyLoss, Rows


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key + ":")).split()[1])


def step(loss, rows: Rows) -> None:
    rows.mean(loss(rows)).backward()


def main(kind: str, count: int, classes: int) -> None:
    loss = TypeAdapter(AnyLoss).validate_python({"kind": kind})
    small = torch.randn(8, 10, requires_grad=True)
    step(loss, Rows(student=small, teacher=torch.randn(8, 10), label=torch.zeros(8).long()))
    student = torch.randn(count, classes).requires_grad_()
    rows = Rows(student=student, teacher=torch.randn(count, classes), label=torch.zeros(count).long())
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmRSS")
    step(loss, rows)
    print((status("VmHWM") - before) / (count * classes * 4))


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
