"""What can go wrong, each with one clear line: what, where, what was found, what to do."""


class DistillError(Exception):
    """The root of every error distill raises on purpose. Its message is complete: no traceback is needed."""


class RecipeError(DistillError):
    """A recipe that cannot be run. `problems` holds one line a mistake: file:line:column: key: what to do."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


class DataError(DistillError):
    """Task data that is missing, malformed or not what the task expects."""


class ModelError(DistillError):
    """A teacher or student that cannot be found, loaded or built."""


class AlignmentError(DistillError):
    """Teacher and student predictions that do not describe the same rows."""


class CheckpointError(DistillError):
    """A checkpoint or stored artefact that is damaged or belongs to something else."""


class MismatchError(CheckpointError):
    """A checkpoint, a fit or a cache that is whole but of something else: other settings, data, weights or versions."""


class PublishError(DistillError):
    """A student that may not be published as it is, or a hub that refuses it: nothing was sent, or nothing changed."""


class HubError(DistillError):
    """The hub cannot be reached or fails. The same command can be given again."""


class LossError(DistillError):
    """A loss that cannot be imported, or cannot be called as one."""


class ResourceError(DistillError):
    """Memory, disk space, open files or the right to write ran out. The same run can continue once there is more."""


class NumericsError(DistillError):
    """A NaN or an infinity, with the tensor's name, the step and the example, raised before any weight changed.

    Attributes:
        row: of the loss where it was found, if it was found in one.
        sequence: of the forward pass where it was found, if it was found inside a model.
    """

    def __init__(self, message: str, *, row: int | None = None, sequence: int | None = None):
        super().__init__(message)
        self.row = row
        self.sequence = sequence
