"""`distill run …` of which processes go wrong while the student is trained: fail_together.py WHAT RANK STEP run ….

WHAT: raises, nan, no-space or killed. RANK: of the process, or `all`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time

import torch

from distill.cli import main
from distill.engine import Engine, checkpoint
from distill.models import Prediction

what, rank, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.argv = ["distill", *sys.argv[4:]]
step = Engine.step


def go_wrong(engine: Engine, batch: list[int]) -> None:
    if "student" in engine.owner and engine.step_number == at:
        print(f"it goes wrong at {time.time()}", file=sys.stderr, flush=True)
        if what == "raises":
            raise OSError("the cable is out")
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "no-space":

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            checkpoint.save_file = full
        if what == "nan":
            ask = engine._ask_teacher
            engine._ask_teacher = lambda asked: Prediction(torch.full_like(ask(asked).logits_NC, torch.nan))
    step(engine, batch)


if rank in ("all", os.environ["RANK"]):
    Engine.step = go_wrong
main()
