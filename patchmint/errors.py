"""The exceptions and warnings of patchmint, and what they tell a program.

```
PatchmintError
├── InputError             the caller's input is at fault; the CLI ends with 2            .index
│   ├── ImageError         an image can't be read or isn't allowed                        .path
│   │   ├── ImageDecodeError
│   │   ├── ImageTooLargeError
│   │   ├── ImageMissingError
│   │   └── ImageUnreadableError
│   ├── TextError          a text holds nothing to look for, or spans outside it
│   └── ConfigError        a setting is unknown, contradictory or out of range            .problems
├── WeightsError           a checkpoint is missing or can't be used
│   ├── WeightsMissingError                                                               .names
│   ├── WeightsCorruptError    cut, a web page, another file, wrong checksum
│   ├── WeightsUnsafeError     holds pickled code
│   └── WeightsMismatchError   a sound file for another architecture
├── PluginError            an outside model is missing or breaks its contract             .name
├── StorageError           a folder or an object store can't be read or written           .uri
│   ├── NotFoundError          there is no such file or object
│   ├── BucketMissingError     there is no such bucket; the CLI ends with 2
│   ├── DiskFullError          there is no room, and trying again makes none
│   └── PlaceError             it is the fault of this machine: another may do it
├── ShardError             a shard, or what goes with it, isn't as the format says        .uri
└── BuildError             a build can't go on
    └── BusyError              another driver is building into the same folder

UserWarning
├── DemoWarning            the models are the demo's
└── UntrainedWarning       the models are untrained
```

Every message says what failed, why, and what to do next. The attributes name the subject for programs; an attribute is
None, or an empty tuple, where the subject isn't known. Errors can be pickled and copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

__all__ = [
    "BucketMissingError",
    "BuildError",
    "BusyError",
    "ConfigError",
    "DemoWarning",
    "DiskFullError",
    "ImageDecodeError",
    "ImageError",
    "ImageMissingError",
    "ImageTooLargeError",
    "ImageUnreadableError",
    "InputError",
    "NotFoundError",
    "PatchmintError",
    "PlaceError",
    "PluginError",
    "ShardError",
    "StorageError",
    "TextError",
    "UntrainedWarning",
    "WeightsCorruptError",
    "WeightsError",
    "WeightsMismatchError",
    "WeightsMissingError",
    "WeightsUnsafeError",
]


class PatchmintError(Exception):
    """Base of every error that patchmint raises on purpose."""


class InputError(PatchmintError):
    """The caller's input is at fault.

    Attributes:
        index: position of the input, from 0, where several were given (`Annotator.annotate_batch`).
    """

    def __init__(self, message: str = "", *, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class ImageError(InputError):
    """An image can't be read or isn't allowed.

    Attributes:
        path: the image file, as given.
    """

    def __init__(self, message: str = "", *, path: str | None = None, index: int | None = None) -> None:
        super().__init__(message, index=index)
        self.path = path


class ImageDecodeError(ImageError):
    """The bytes are no image of an allowed format, or they are damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit allows."""


class ImageMissingError(ImageError):
    """An image that an annotation names isn't where it should be."""


class ImageUnreadableError(ImageError):
    """An image is there, but its file can't be read."""


class TextError(InputError):
    """A text holds nothing to look for, or a phrase span lies outside it."""


class ConfigError(InputError):
    """A setting is unknown, contradictory or out of range.

    Attributes:
        problems: everything that is wrong, a line each; the message alone where only one thing is.
    """

    def __init__(self, message: str = "", *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class MixedSplitsError(ConfigError):
    """A source holds several splits, and none is chosen.

    Attributes:
        splits: that were found; of a big folder not all.
    """

    def __init__(self, message: str = "", *, problems: Sequence[str] = (), splits: Sequence[str] = ()) -> None:
        super().__init__(message, problems=problems)
        self.splits = tuple(splits)


class WeightsError(PatchmintError):
    """A checkpoint is missing or can't be used."""


class WeightsMissingError(WeightsError):
    """Checkpoints aren't on this machine.

    Attributes:
        names: the checkpoints, or paths, as given.
    """

    def __init__(self, message: str = "", *, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.names = tuple(names)


class WeightsCorruptError(WeightsError):
    """A checkpoint file is cut, is something else (a web page, say), or has the wrong checksum."""


class WeightsUnsafeError(WeightsError):
    """A checkpoint file holds pickled code, which patchmint never runs."""


class WeightsMismatchError(WeightsError):
    """A checkpoint is sound but belongs to another architecture."""


class PluginError(PatchmintError):
    """A model from an outside package is missing or breaks the interface's contract.

    Attributes:
        name: the entry point's name.
    """

    def __init__(self, message: str = "", *, name: str | None = None) -> None:
        super().__init__(message)
        self.name = name


class StorageError(PatchmintError):
    """A folder or an object store can't be read or written.

    Attributes:
        uri: the file, object, folder or store. It never holds credentials.
    """

    def __init__(self, message: str = "", *, uri: str | None = None) -> None:
        super().__init__(message)
        self.uri = uri


class NotFoundError(StorageError):
    """There is no such file or object."""


class BucketMissingError(StorageError):
    """There is no such bucket or container."""


class DiskFullError(StorageError):
    """There is no room, or the quota is used up; trying again makes none."""


class PlaceError(StorageError):
    """This machine can't do it, whatever the storage is like; another may."""


class ShardError(PatchmintError):
    """A shard, or what goes with it, isn't as the format says.

    Attributes:
        uri: the file where it is known, else the data set.
    """

    def __init__(self, message: str = "", *, uri: str | None = None) -> None:
        super().__init__(message)
        self.uri = uri


class BuildError(PatchmintError):
    """A build can't go on."""


class BusyError(BuildError):
    """Another driver is building into the same folder."""


def did_you_mean(word: str, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or nothing where no known name is near."""
    near = [repr(name) for name in get_close_matches(word.lower(), known, n=most, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


@contextmanager
def about(uri: str) -> Iterator[None]:
    """Give the `ShardError` that leaves the block this `uri`, unless it has one."""
    try:
        yield
    except ShardError as error:
        error.uri = error.uri or uri
        raise


class DemoWarning(UserWarning):
    """The models are the demo's: they know drawn shapes, and nothing else."""


class UntrainedWarning(UserWarning):
    """The models are untrained: their labels and codes mean nothing."""
