"""Models on the Hugging Face Hub, through its client: its cache, token, mirror (`HF_ENDPOINT`) and offline switch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from patchmint.errors import WeightsMissingError
from patchmint.storage.failures import explain_hub
from patchmint.storage.hub import connect
from patchmint.weights.folder import INSTEAD, NOTES, VOCABULARY, WEIGHTS, instead

PREFIX = "hub:"
_OF_TEXT = ("tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")
# For plug-ins that read text with transformers' classes.

_FORM = re.compile(r"hub:(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@#?]+))?", re.ASCII)


@lru_cache(maxsize=64)
def snapshot(name: str) -> Path:
    """The folder of a model in the Hub's cache on this machine; what it lacks of the model's files is fetched.

    A process sees one commit of it, whatever happens to a branch meanwhile.

    Args:
        name: `hub:ORG/NAME[@REVISION]`, a branch, a tag or a commit.

    Raises:
        WeightsMissingError: the name has another form, or there is no such model, revision or file of weights; or it is
            gated, or private; or nothing may be fetched, and it isn't here.
        StorageError: the Hub can't be asked.
    """
    match = _FORM.fullmatch(name)
    if match is None:
        raise _missing(name, f"{name} isn't of the form hub:ORG/NAME[@REVISION]")
    weights = _first(name, match["repo"], match["revision"], WEIGHTS)
    if weights is None:
        other = _first(name, match["repo"], match["revision"], INSTEAD)
        why = instead(other.parent) if other else f"it has no {' or '.join(WEIGHTS)}; give a file that you have"
        raise _missing(name, f"{name} can't be used: {why}, or name another model")
    folder = weights.parent
    for group in (VOCABULARY, *((note,) for note in (*NOTES, *_OF_TEXT))):
        _first(name, match["repo"], folder.name, group)  # the folder's name is the commit
    return folder


def _first(name: str, repo: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """The first of some files that a model has, in the cache."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    endpoint = connect(name).endpoint
    for file in files:
        if try_to_load_from_cache(repo, file, revision=revision) is _CACHED_NO_EXIST:
            continue  # a commit doesn't change, so the Hub need not be asked again
        try:
            return Path(hf_hub_download(repo, file, revision=revision, endpoint=endpoint, library_name="patchmint"))
        except RemoteEntryNotFoundError:
            continue
        except GatedRepoError as error:
            raise _missing(
                name,
                f"{name} is gated: accept its terms at {endpoint}/{repo}, and set HF_TOKEN to a token of that account",
            ) from error
        except LocalEntryNotFoundError as error:
            if not constants.HF_HUB_OFFLINE:
                raise explain_hub("fetch", name, error.__cause__ or error) from error
            if files == WEIGHTS and file == files[-1]:
                raise _missing(
                    name, f"{name} isn't in the Hub's cache on this machine, and HF_HUB_OFFLINE forbids to fetch it"
                ) from error
        except Exception as error:
            explained = explain_hub("fetch", name, error)
            lasting = "NotFound" in type(error).__name__
            raise (_missing(name, str(explained)) if lasting else explained) from error
    return None


def _missing(name: str, message: str) -> WeightsMissingError:
    return WeightsMissingError(message, names=[name])
