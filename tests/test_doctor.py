"""What `patchmint doctor` says of a source's first samples, and of Ray's token, against Ray itself."""

import json

import pytest
from ray._raylet import AuthenticationTokenLoader
from ray.exceptions import AuthenticationError
from source_files import image_bytes, put

from patchmint.config import UNTRAINED
from patchmint.config.build import BuildConfig
from patchmint.jobs import doctor

PHOTO = image_bytes()


def looked_at(folder, **changes):
    source = {"kind": "folder", "uri": str(folder)}
    settings = {"source": source, "output": {"uri": "out"}, "models": UNTRAINED} | changes
    return doctor._source(BuildConfig.parse(settings))


def test_the_first_samples_are_read(tmp_path, monkeypatch):
    put(tmp_path, {f"{number}.jpg": PHOTO for number in range(3)} | {f"{number}.txt": "a cat" for number in range(3)})
    found = looked_at(tmp_path)
    assert found.status == "ok"
    assert found.detail == f"folder, {tmp_path}: 3 samples looked at; 0.jpg has 64 x 64 pixels and 1 text"
    monkeypatch.setattr(doctor, "_SAMPLES", 2)
    assert "the first 2 samples looked at" in looked_at(tmp_path).detail
    monkeypatch.undo()
    (tmp_path / "0.jpg").write_bytes(b"no image")
    (tmp_path / "2.txt").unlink()
    found = looked_at(tmp_path)
    assert (found.status, found.remedy[:6]) == ("note", "0.jpg:")
    assert "3 samples looked at, of which 1 would be rejected (1 text-missing); 1.jpg has" in found.detail
    (tmp_path / "0.jpg").write_bytes(PHOTO)
    assert looked_at(tmp_path).remedy == "the build stops above limits.max_reject_share"
    assert looked_at(tmp_path, limits={"max_reject_share": 0.5}).status == "ok"


def test_a_source_without_a_good_sample_fails(tmp_path):
    put(tmp_path, {"a.jpg": b"no image", "a.txt": "a cat", "b.jpg": b"none", "b.txt": "a dog"})
    found = looked_at(tmp_path)
    assert (found.status, "none of the first 2 images can be read" in found.detail) == ("fail", True)
    for path in tmp_path.glob("*.txt"):
        path.write_text(" ")
    assert "2 would be rejected (2 text-empty)" in looked_at(tmp_path).detail
    assert looked_at(tmp_path).status == "fail"
    put(tmp_path, {"mine.json": '[{"id": 1, "conversations": []}, {"id"', "images/a.jpg": PHOTO})
    source = {"kind": "llava", "uri": str(tmp_path), "annotations": "mine.json"}
    found = looked_at(tmp_path, source=source)
    assert (found.status, "isn't sound JSON" in found.detail) == ("fail", True)


HOME_TOKEN = "~/.ray/auth_token"
PLACES = [
    ({}, None),
    ({}, "secret"),
    ({}, " \n"),
    ({"RAY_AUTH_TOKEN": "secret"}, None),
    ({"RAY_AUTH_TOKEN": " "}, None),
    ({"RAY_AUTH_TOKEN": ""}, "secret"),
    ({"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, None),
    ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "secret"),
    ({"RAY_AUTH_TOKEN_PATH": HOME_TOKEN}, "secret"),
    ({"RAY_AUTH_TOKEN_PATH": ""}, "secret"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    monkeypatch.undo()
    AuthenticationTokenLoader.instance().reset_cache()


@pytest.mark.parametrize(("variables", "at_home"), PLACES, ids=json.dumps)
def test_the_token_is_where_ray_finds_it(variables, at_home, home, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if at_home is not None:
        put(home, {".ray/auth_token": at_home})
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        there = loader.has_token(ignore_auth_mode=True)
    except AuthenticationError:
        there = None
    found = doctor._ray_token(None)
    assert ("none on this machine" not in found.detail) is (there is not False)
    assert ("Ray stops" in found.detail) is (there is None)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert doctor._ray_token(None).status == ("ok" if there else "note")


def test_what_the_mode_does_is_said(home, monkeypatch):
    ray = BuildConfig.parse(
        {"source": {"kind": "folder", "uri": "x"}, "output": {"uri": "out"}, "runner": {"kind": "ray"}}
    )
    assert "starts a cluster without authentication" in doctor._ray_token(None).detail
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    missing = doctor._ray_token(ray)
    assert (missing.status, missing.remedy.split("   ")[0]) == ("fail", "ray get-auth-token --generate")
    put(home, {".ray/auth_token": "secret"})
    assert doctor._ray_token(ray).detail == f"from {home}/.ray/auth_token"
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert doctor._ray_token(ray).remedy == "export RAY_AUTH_MODE=token"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "can run code" in doctor._ray_token(ray).detail
