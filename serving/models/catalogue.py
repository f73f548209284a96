"""From a `models:` entry of the settings to the directory with its files."""

from __future__ import annotations

from pathlib import Path

from serving.models import embedded
from serving.models.text import FILES, ModelFilesError
from serving.settings import EMBEDDED, ModelSettings


def name_of(model: ModelSettings) -> str:
    """The id that clients use for this model."""
    if model.name:
        return model.name
    return embedded.NAME if model.source == EMBEDDED else model.source


def aliases_of(model: ModelSettings) -> tuple[str, ...]:
    """Other ids that mean this model."""
    own = (f"HuggingFaceTB/{embedded.NAME}",) if model.source == EMBEDDED else ()
    return (*model.aliases, *(alias for alias in own if alias != model.name))


def directory_of(model: ModelSettings, *, weights: bool) -> Path:
    """Where the model's files are, fetched first where they must be.

    `weights=False` fetches only what the text side needs. Raises `ModelFilesError`.
    """
    if model.source == EMBEDDED:
        return embedded.prepare()
    path = Path(model.source).expanduser()
    if path.is_dir():
        return path
    if model.source.startswith(("/", ".", "~")):
        raise ModelFilesError(f"no such directory: {model.source}")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(model.source, revision=model.revision, allow_patterns=None if weights else list(FILES))
        )
    except Exception as error:  # the hub client raises a family of its own, and requests'
        raise ModelFilesError(f"{model.source} is neither a directory nor to be had from the hub: {error}") from error
