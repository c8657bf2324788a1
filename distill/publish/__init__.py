"""A finished run's student as a repository of the Hugging Face hub, with a card that says what was measured."""

from distill.publish.publish import Publication, publish_run

__all__ = ["Publication", "publish_run"]
