"""What the licences of a student's teachers and of the model it started from let its own licence be.

A table of what the licences say, not legal advice: it stops the plain mistakes, such as Apache-2.0 on a student of a
model that may not be used commercially. Licences are called what the hub calls them: "apache-2.0", "cc-by-nc-4.0".
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from distill.errors import PublishError
from distill.recipe.packages import PREFIX

# Whatever is made of these may have any licence, as long as they are named.
PERMISSIVE = frozenset(
    {
        "afl-3.0",
        "apache-2.0",
        "artistic-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "cc0-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "ecl-2.0",
        "isc",
        "mit",
        "ms-pl",
        "ncsa",
        "odc-by",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    }
)
# Whatever is made of these has one of these. A licence in neither table binds to itself: terms of their own (llama3,
# gemma, openrail), copyleft (cc-by-sa-4.0, agpl-3.0, epl-2.0), and licences that this table does not know.
BINDING: Mapping[str, frozenset[str]] = {
    "cc-by-nc-2.0": frozenset({"cc-by-nc-2.0", "cc-by-nc-sa-2.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
    "cc-by-nc-3.0": frozenset({"cc-by-nc-3.0", "cc-by-nc-sa-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
    "cc-by-nc-4.0": frozenset({"cc-by-nc-4.0", "cc-by-nc-sa-4.0"}),
    "cc-by-nc-sa-2.0": frozenset({"cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}),
    "cc-by-nc-sa-3.0": frozenset({"cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}),
    "cc-by-sa-3.0": frozenset({"cc-by-sa-3.0", "cc-by-sa-4.0"}),
    "cc-by-nd-4.0": frozenset(),  # nothing that is made of them may be passed on
    "cc-by-nc-nd-3.0": frozenset(),
    "cc-by-nc-nd-4.0": frozenset(),
    "gpl-3.0": frozenset({"gpl-3.0", "agpl-3.0"}),
    "lgpl-2.1": frozenset({"lgpl-2.1", "lgpl-3.0", "gpl-2.0", "gpl-3.0"}),
    "lgpl-3.0": frozenset({"lgpl-3.0", "gpl-3.0", "agpl-3.0"}),
}
# What packages write in other words.
_SPOKEN = {"mit license": "mit", "apache license 2.0": "apache-2.0", "apache 2.0": "apache-2.0"}
NAME = r"[a-z0-9][a-z0-9.+-]*"


@dataclass(frozen=True)
class Ancestor:
    """A model that a student has learnt from, or started from.

    Attributes:
        name: as reports call it.
        hub: its hub id, None where it did not come from there.
        revision: the commit of the hub, else None.
        license: what it may be used for; None where nobody says.
    """

    name: str
    hub: str | None = None
    revision: str | None = None
    license: str | None = None


def allows(theirs: str, own: str) -> bool:
    """Whether what is made of a model with one licence may have another."""
    return theirs in PERMISSIVE or own in BINDING.get(theirs, frozenset({theirs}))


def check_license(own: str | None, ancestors: Iterable[Ancestor], despite: Collection[str] = ()) -> None:
    """Refuse a student without a licence, or with one that an ancestor's does not allow.

    Args:
        own: the student's.
        ancestors: with all that is known of their licences.
        despite: licences of ancestors that the publisher insists on passing over, each by its name.

    Raises:
        PublishError: one line that names the ancestor, both licences and the option.
    """
    if own is None:
        raise PublishError(
            "--license: is missing; say under which licence the student is published, such as apache-2.0"
        )
    if not re.fullmatch(NAME, own):
        raise PublishError(
            f"--license {ascii(own)[1:-1]}: must be a licence as the hub writes it, such as apache-2.0 or cc-by-nc-4.0"
        )
    for each in ancestors:
        if each.license is None:
            raise PublishError(
                f"{each.name}: its files do not say under which licence it is; look it up and say "
                f"--license-of {each.name}=LICENSE"
            )
        if not allows(each.license, own) and each.license not in despite:
            raise PublishError(
                f"--license {own}: {each.name} is under {each.license}, which does not allow that for what is made of "
                f"it; {_instead(each.license)}, or, if you have its owner's leave, insist with "
                f"--despite-license {each.license}"
            )


def stated_licenses(named: Iterable[str]) -> dict[str, str]:
    """`MODEL=LICENSE` as model to licence.

    Raises:
        PublishError: one of them is something else.
    """
    found = {}
    for each in named:
        model, _, name = each.rpartition("=")
        if not model or not re.fullmatch(NAME, name):
            raise PublishError(
                f"--license-of {ascii(each)[1:-1]}: must be MODEL=LICENSE, such as owner/name=apache-2.0"
            )
        found[model] = name
    return found


def license_of(ancestor: Ancestor, *, network: bool) -> str | None:
    """What a model says of its own licence: the hub's card, or the metadata of the package that carries it.

    Args:
        ancestor: whose.
        network: whether the hub may be asked; otherwise what was downloaded before must do.

    Raises:
        HubError: the hub cannot be reached.
    """
    if ancestor.name.startswith(PREFIX):
        package = importlib.metadata.metadata(ancestor.name.removeprefix(PREFIX)).json
        said = package.get("license_expression") or package.get("license")
        found = said.strip().lower() if isinstance(said, str) else ""
        return _SPOKEN.get(found, found if re.fullmatch(NAME, found) else None)
    if ancestor.hub is None:
        return None
    from huggingface_hub import ModelCard, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    from distill.upload import hub_errors

    file = try_to_load_from_cache(ancestor.hub, "README.md", revision=ancestor.revision)
    if network and not isinstance(file, str):
        with hub_errors(f"the card of {ancestor.hub}"):
            try:
                file = hf_hub_download(ancestor.hub, "README.md", revision=ancestor.revision)
            except RemoteEntryNotFoundError:
                return None
    if not isinstance(file, str):
        return None
    named = ModelCard.load(file, ignore_metadata_errors=True).data.get("license")
    return named.lower() if isinstance(named, str) else None


def _instead(theirs: str) -> str:
    allowed = sorted(BINDING.get(theirs, frozenset({theirs})))
    return f"take {' or '.join(allowed)}" if allowed else "it cannot be published"
