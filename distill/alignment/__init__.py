"""Two predictions → the rows a loss compares."""

from distill.alignment.classes import align_classes, class_order

__all__ = ["align_classes", "class_order"]
