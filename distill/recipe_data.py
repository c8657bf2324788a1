"""The data that a recipe asks for."""

from distill.recipe import DataRecipe
from distill.tasks import TaskData, load_task, load_text


def load_recipe_data(wanted: DataRecipe, name: str) -> TaskData:
    """One task's examples, from where a recipe says.

    Raises:
        DataError: the data is missing, malformed, unlabelled or empty.
    """
    if wanted.source == "text":
        return load_text(
            wanted.path or "",
            validation=wanted.validation,
            characters=wanted.passage_characters,
            train_examples=wanted.train_examples,
            validation_examples=wanted.validation_examples,
        )
    return load_task(
        name,
        source=wanted.source,
        path=wanted.path,
        revision=wanted.revision,
        train_examples=wanted.train_examples,
        validation_examples=wanted.validation_examples,
        demo_seed=wanted.seed,
    )
