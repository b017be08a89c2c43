"""The exception tree.

```
PatchmintError
├── InputError             what the caller handed in is at fault; the CLI ends with 2
│   ├── ImageError         an image can't be read or isn't allowed
│   │   ├── ImageDecodeError
│   │   ├── ImageTooLargeError
│   │   ├── ImageMissingError
│   │   └── ImageUnreadableError
│   ├── TextError          a text holds nothing to look for, or spans outside it
│   └── ConfigError        a setting is unknown, contradictory or out of range
├── WeightsError           a checkpoint is missing or can't be used
│   ├── WeightsMissingError
│   ├── WeightsCorruptError    cut, a web page, another file, wrong checksum
│   ├── WeightsUnsafeError     holds pickled code
│   └── WeightsMismatchError   a sound file for another architecture
├── PluginError            an outside model is missing or breaks its contract
├── StorageError           a folder or an object store can't be read or written
│   ├── NotFoundError          there is no such file or object
│   └── DiskFullError          there is no room, and trying again makes none
├── ShardError             a shard, or what goes with it, isn't as the format says
└── BuildError             a build can't go on
    └── BusyError              another driver is building into the same folder
```

Every message says what failed, why, and what to do next.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'x'?", or nothing where no known name is near."""
    near = get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


class PatchmintError(Exception):
    """Base of every error that patchmint raises on purpose."""


class InputError(PatchmintError):
    """What the caller handed in is at fault."""


class ImageError(InputError):
    """An image can't be read or isn't allowed."""


class ImageDecodeError(ImageError):
    """The bytes are no image of an allowed format, or they are damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than the limit allows."""


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


class WeightsError(PatchmintError):
    """A checkpoint is missing or can't be used."""


class WeightsMissingError(WeightsError):
    """A checkpoint isn't on this machine."""


class WeightsCorruptError(WeightsError):
    """A checkpoint file is cut, is something else (a web page, say), or has the wrong checksum."""


class WeightsUnsafeError(WeightsError):
    """A checkpoint file holds pickled code, which patchmint never runs."""


class WeightsMismatchError(WeightsError):
    """A checkpoint is sound but belongs to another architecture."""


class PluginError(PatchmintError):
    """A model from an outside package is missing or breaks the interface's contract."""


class ImageMissingError(ImageError):
    """An image that an annotation names isn't where it should be."""


class ImageUnreadableError(ImageError):
    """An image is there, but its file can't be read."""


class StorageError(PatchmintError):
    """A folder or an object store can't be read or written."""


class NotFoundError(StorageError):
    """There is no such file or object."""


class DiskFullError(StorageError):
    """There is no room; trying again makes none."""


class ShardError(PatchmintError):
    """A shard, or what goes with it, isn't as the format says."""


class BuildError(PatchmintError):
    """A build can't go on."""


class BusyError(BuildError):
    """Another driver is building into the same folder."""
