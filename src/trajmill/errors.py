"""Every error trajmill raises on purpose."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class TrajmillError(Exception):
    """Root of all errors that a user can act on; the command line prints its message in one line."""


class RecipeError(TrajmillError):
    """The recipe or a flag is wrong: unknown key, bad value, missing path."""


class SourceError(TrajmillError):
    """A source's folder or file is not what it should be, as a whole (a bad record is a rejection, not an error)."""


class StoreError(TrajmillError):
    """The store cannot be opened, read or written."""


class EngineError(TrajmillError):
    """There is nowhere to run the work, or no more; what was committed is unharmed, running again goes on."""


class FetchError(TrajmillError):
    """Raw files could not be fetched. What had arrived stays; running the same command again goes on from there."""


class RemoteNotFoundError(FetchError):
    """There is nothing at this address: it moved, or an endpoint of the recipe is wrong."""


class RemoteRefusedError(FetchError):
    """The server will not hand this out (401, 403 and other refusals); asking again would not help."""


class RemoteContentError(FetchError):
    """What the server sends is not what it announced: other length or checksum, a web page in place of data."""


class RemoteUnavailableError(FetchError):
    """The server did not answer, or too slowly, however often it was asked; other files would fare no better."""


class DiskError(FetchError):
    """The disk is full or cannot be written."""


class ReleaseError(TrajmillError):
    """A release cannot be written or read."""


class ConvertError(TrajmillError):
    """A dataset cannot be written as asked."""


class FigureError(TrajmillError):
    """A figure cannot be drawn of this dataset."""


class LoadError(TrajmillError):
    """A dataset cannot be loaded for training as asked."""


class ModelError(TrajmillError):
    """A model cannot be loaded, trained or asked, or what it said cannot be read."""


class ViewError(TrajmillError):
    """A view of a dataset makes no sense."""


class FormatError(TrajmillError):
    """A file of somebody else's dataset is not what its format says; names the record."""


class FilterError(TrajmillError):
    """A filter cannot be read, or asks for something that the rows do not have."""


class SplitError(TrajmillError):
    """Data cannot be split so, or a split is not for this data."""


class PublishError(TrajmillError):
    """A release could not be pushed: refused, in conflict with another commit, or not the same at the other end."""


class BalanceError(TrajmillError):
    """Frames or records went missing between reader and store: a bug in trajmill, never committed."""


class MissingExtraError(TrajmillError):
    """An optional dependency is not installed."""


def require(module: str, *, extra: str) -> Any:
    """Import an optional dependency.

    Args:
        module: dotted module name.
        extra: trajmill's extra that installs it.

    Raises:
        MissingExtraError: it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{module.partition('.')[0]} is not installed: pip install 'trajmill[{extra}]'"
        ) from error
