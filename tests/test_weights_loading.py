"""`patchmint.weights.loading`: official containers open, hostile and damaged files are one named error.

Lightning is imported where it is used: that takes seconds, of each worker of a test run.
"""

import argparse
import datetime
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from patchmint.errors import (
    WeightsCorruptError,
    WeightsError,
    WeightsMismatchError,
    WeightsMissingError,
    WeightsUnsafeError,
)
from patchmint.weights import loading
from patchmint.weights.container import read_header
from patchmint.weights.loading import load_into
from patchmint.weights.registry import Checkpoint


def load_state(path, checkpoint=None):
    """As `loading.load_state`. The header alone must tell the same, fail alike, or not see what is wrong behind it."""
    try:
        state = loading.load_state(path, checkpoint)
    except WeightsError as error:
        with suppress(type(error)):
            read_header(path)
        raise
    header = read_header(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.tensors.items()}
    assert {name: tensor.shape for name, tensor in header.tensors.items()} == shapes
    assert header.metadata == state.metadata
    return state


def a_state():
    return dict(nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32)).state_dict())


def same(loaded, saved):
    return list(loaded) == list(saved) and all(torch.equal(loaded[name], saved[name]) for name in saved)


def saved(thing, path, *, zipped=True):
    torch.save(thing, path, _use_new_zipfile_serialization=zipped)
    return path


class Calls:
    """Unpickled carelessly, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
class TestOfficialContainers:
    def test_grounding_dino(self, tmp_path, zipped):
        state = a_state()
        inner = OrderedDict((f"module.{name}", tensor) for name, tensor in state.items())
        path = saved({"model": inner}, tmp_path / "dino.pth", zipped=zipped)
        assert same(load_state(path).tensors, state)

    def test_sam(self, tmp_path, zipped):
        state = a_state()
        found = load_state(saved(OrderedDict(state), tmp_path / "sam.pth", zipped=zipped))
        assert same(found.tensors, state)
        assert found.path == tmp_path / "sam.pth"
        assert found.metadata == {}

    def test_vqgan_with_genuine_lightning_and_omegaconf_objects(self, tmp_path, zipped):
        import omegaconf
        from pytorch_lightning.callbacks import ModelCheckpoint
        from pytorch_lightning.utilities.parsing import AttributeDict

        state = a_state()
        settings = {"n_embed": 16384, "ddconfig": {"ch_mult": [1, 1, 2, 2, 4], "double_z": False}}
        config = omegaconf.OmegaConf.create(settings)
        checkpoint = {
            "epoch": 1,
            "pytorch-lightning_version": "1.0.8",
            "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "dirpath": "logs"}},
            "optimizer_states": [{"state": defaultdict(dict, {0: {"step": 3}})}],
            "state_dict": OrderedDict(state),
            "hyper_parameters": AttributeDict(config=config),
        }
        path = saved(checkpoint, tmp_path / "last.ckpt", zipped=zipped)
        with pytest.raises(pickle.UnpicklingError):  # why stubs are needed at all
            torch.load(path, weights_only=True)
        allowed = set(torch.serialization.get_safe_globals())
        assert same(load_state(path).tensors, state)
        assert set(torch.serialization.get_safe_globals()) == allowed


class TestTrainingCheckpoints:
    """What training leaves behind: settings, histories and numbers, none of which is unpickled."""

    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
    def test_baggage_is_passed_over(self, tmp_path, zipped, monkeypatch):
        state = a_state()
        history = stand_in(monkeypatch, "mmengine.logging.history_buffer", "HistoryBuffer")
        settings = stand_in(monkeypatch, "addict.addict", "Dict", dict)
        checkpoint = {
            "model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
            "args": argparse.Namespace(lr=np.float64(1e-4), out=Path("x"), at=datetime.datetime(2026, 1, 1)),
            "best": np.float32(0.5),
            "message_hub": {"log_scalars": {"loss": history()}},
            "cfg": settings(lr=0.1),
            "optimizer": {"state": defaultdict(dict, {0: {"step": 3}})},
        }
        checkpoint["message_hub"]["log_scalars"]["loss"]._log_history = np.arange(3.0)
        checkpoint["cfg"].frozen = True
        path = saved(checkpoint, tmp_path / "checkpoint.pth", zipped=zipped)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
        assert same(load_state(path).tensors, state)

    def test_averages_are_taken_by_name(self, tmp_path):
        state = a_state()
        averages = {name: tensor + 1 for name, tensor in state.items()}
        path = saved({"model": state, "ema": {"module": averages, "updates": 7}}, tmp_path / "c.pth")
        assert same(loading.load_named(str(path)).tensors, state)
        assert same(loading.load_named(f"{path}#ema").tensors, averages)
        flat = {f"net.{name}": tensor for name, tensor in state.items()}
        flat |= {f"net_ema.{name}": tensor for name, tensor in averages.items()}
        for path in (saved(flat, tmp_path / "flat.pth"), tmp_path / "flat.safetensors"):
            if path.suffix == ".safetensors":
                safetensors.torch.save_file(flat, path)
            for part, expected in (("net", state), ("net_ema", averages)):
                assert dict_equal(loading.load_named(f"{path}#{part}").tensors, expected)
                assert read_header(path, part).tensors.keys() == expected.keys()
            with pytest.raises(WeightsMismatchError, match=r"no part 'emma'.*it has net, net_ema"):
                loading.load_named(f"{path}#emma")


def stand_in(monkeypatch, module, name, base=object):
    """A class of a package that isn't installed, which a pickle can name for a while."""
    made = type(name, (base,), {"__module__": module})
    for end in range(len(parts := module.split("."))):
        package = ".".join(parts[: end + 1])
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    setattr(sys.modules[module], name, made)
    return made


def dict_equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "in-a-state-dict"])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw-0", "raw-2", "raw-4"])
def test_hostile_pickles_never_run(tmp_path, form, nested):
    marker = tmp_path / "marker"
    hostile = Calls(os.system, f"touch {marker}")
    if nested:
        hostile = {"state_dict": {**a_state(), "extra": hostile}}
    path = tmp_path / "hostile.pth"
    if form.startswith("raw"):
        path.write_bytes(pickle.dumps(hostile, protocol=int(form[-1])))
    else:
        saved(hostile, path, zipped=form == "zip")
    with pytest.raises(WeightsUnsafeError, match=r"(posix|nt)\.system"):
        load_state(path)
    assert not marker.exists()
    torch.load(path, weights_only=False) if not form.startswith("raw") else pickle.loads(path.read_bytes())
    assert marker.exists(), "the attack itself doesn't work, so the test proves nothing"


@pytest.mark.parametrize("code", [b"cbuiltins\neval\n(S'1'\ntR.", b"\x80\x02cposix\nsystem\nX\x01\x00\x00\x00a\x85R."])
@pytest.mark.parametrize("part", ["magic", "object"])
def test_hostile_code_before_the_state_dict_of_a_legacy_file(tmp_path, code, part):
    path = saved(a_state(), tmp_path / "legacy.pth", zipped=False)
    content = path.read_bytes()
    path.write_bytes(code + content if part == "magic" else content[: content.index(b".") + 1] + code + content)
    with pytest.raises(WeightsUnsafeError, match=r"builtins\.eval|posix\.system"):
        load_state(path)


def test_names_inside_torch_are_no_loophole(tmp_path):
    hub = Calls(torch.hub.load, "somebody/something", "model")
    for thing, name in ((hub, "torch.hub.load"), (Calls(eval, "1"), "eval")):
        with pytest.raises(WeightsUnsafeError, match=name):
            load_state(saved({"state_dict": thing}, tmp_path / "hostile.pth"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_cut_anywhere_is_corrupt(tmp_path, zipped):
    path = saved({"model": a_state()}, tmp_path / "whole.pth", zipped=zipped)
    content = path.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in {1, 3, 4, 16, 100, len(content) // 3, len(content) // 2, len(content) - 200, len(content) - 1}:
        cut.write_bytes(content[:length])
        with pytest.raises(WeightsCorruptError):
            load_state(cut)


def test_the_expected_size_is_told_where_it_is_known(tmp_path):
    path = saved(a_state(), tmp_path / "sam.pth")
    size = path.stat().st_size
    known = Checkpoint("toy", "sam", "sam.pth", "http://x/", size, None, "none", "this test")
    assert load_state(path, known).tensors
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsCorruptError, match=f"cut off: it has {size - 10} bytes, toy has {size}"):
        load_state(path, known)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_garbled_files_never_load_silently_or_crash(tmp_path, zipped):
    state = a_state()
    path = saved(state, tmp_path / "whole.pth", zipped=zipped)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (60,), generator=generator).tolist():
        garbled = bytearray(content)
        garbled[position] ^= 0xFF
        path.write_bytes(garbled)
        try:
            loaded = load_state(path).tensors
        except (WeightsCorruptError, WeightsUnsafeError):
            continue
        if zipped:  # what loads is equal: the byte was padding. Legacy files have no check sums.
            assert same(loaded, state)


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
    state = {"weight": torch.zeros(1000)}
    path = saved(state, tmp_path / "whole.pth")
    content = bytearray(path.read_bytes())
    content[content.index(b"\0" * 4000) + 2000] = 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["weight"].count_nonzero() == 1  # torch itself doesn't notice
    with pytest.raises(WeightsCorruptError, match="damaged"):
        load_state(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"  <!DOCTYPE html>\n<html><p>Link does not exist", "web page"),
        (b"\xef\xbb\xbf<HTML><body>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"hello, I am text\n", "text file"),
        (b"\xe0\xf9$\xb5A\xba\xb5\xf0f\x9a", "damaged|text"),
        (pickle.dumps({"model": [1, 2]}), "bare pickle"),
        (b"\x80\x02", "bare pickle"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, says):
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsCorruptError, match=says):
        load_state(path)


def test_a_zip_that_torch_did_not_write(tmp_path):
    for name, method, says in (("readme.txt", 0, "not one that torch.save wrote"), ("a/data.pkl", 8, "compressed")):
        with zipfile.ZipFile(tmp_path / "other.zip", "w", compression=method) as archive:
            archive.writestr(name, b"x" * 1000)
        with pytest.raises(WeightsCorruptError, match=says):
            load_state(tmp_path / "other.zip")


def test_a_newer_pickle_protocol_is_named(tmp_path):
    torch.save(a_state(), tmp_path / "new.pth", pickle_protocol=4)
    with pytest.raises(WeightsCorruptError, match="pickle protocol"):
        load_state(tmp_path / "new.pth")


@pytest.mark.parametrize(
    "thing", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"a": "text"}}, {"w": torch.empty(2, device="meta")}]
)
def test_a_torch_file_without_a_state_dict(tmp_path, thing):
    with pytest.raises(WeightsCorruptError, match=r"(a|no) state dict"):
        load_state(saved(thing, tmp_path / "other.pth"))


def test_parameters_come_detached_and_on_the_cpu(tmp_path):
    found = load_state(saved({"weight": nn.Parameter(torch.ones(3))}, tmp_path / "p.pth"))
    assert not found.tensors["weight"].requires_grad


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(WeightsMissingError, match="can't be read"):
            load_state(path)


def test_safetensors_whole_and_cut_anywhere(tmp_path):
    state, path = a_state(), tmp_path / "demo.safetensors"
    safetensors.torch.save_file(state, path, metadata={"config": "{}", "seed": "7"})
    found = load_state(path)
    assert same(dict(sorted(found.tensors.items())), dict(sorted(state.items())))
    assert found.metadata == {"config": "{}", "seed": "7"}
    content = path.read_bytes()
    for length in (1, 8, 20, 200, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsCorruptError):
            load_state(path)


class TestLoadInto:
    def test_strict_and_ignored(self, tmp_path):
        torch.manual_seed(0)
        source, target = nn.Linear(3, 2), nn.Linear(3, 2)
        state = {**source.state_dict(), "loss.perceptual": torch.zeros(1)}
        found = load_state(saved({"state_dict": state}, tmp_path / "v.ckpt"))
        with pytest.raises(WeightsMismatchError, match=r"a toy.*1 unexpected \(loss\.perceptual\)"):
            load_into(target, found, what="a toy")
        load_into(target, found, what="a toy", ignored=("loss.",))
        assert torch.equal(target.weight, source.weight)

    def test_everything_that_does_not_fit_is_listed_and_nothing_is_copied(self, tmp_path):
        target = nn.Linear(3, 2)
        before = target.weight.clone()
        state = {"weight": torch.zeros(2, 4), **{f"other{i}": torch.zeros(1) for i in range(9)}}
        found = load_state(saved(state, tmp_path / "v.ckpt"))
        with pytest.raises(WeightsMismatchError) as caught:
            load_into(target, found, what="a toy of 3 x 2")
        message, shapes = str(caught.value), "weight: (2, 4) in the file, (2, 3) in the model"
        for part in ("1 missing (bias)", "9 unexpected (other0,", "...", shapes):
            assert part in message
        assert "other8" not in message
        assert torch.equal(target.weight, before)


def test_the_same_bytes_from_a_stream_prove_the_fixture_is_a_real_lightning_file():
    from pytorch_lightning.callbacks import ModelCheckpoint

    buffer = io.BytesIO()
    torch.save({"callbacks": {ModelCheckpoint: {}}}, buffer)
    buffer.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    assert names == ["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"]
