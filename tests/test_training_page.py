"""The first section of docs/training.md, line by line, on a small COCO in the genuine form."""

import re
import shlex
import sys
from pathlib import Path

import torch
import warm
from text_tokenizers import gpt2_like, small_llama

from patchmint.demo.dataset import write_dataset
from patchmint.training.selector import PatchSelector

ROOT = Path(__file__).parent.parent


def blocks():
    """(language, code) of the section, in order."""
    page = (ROOT / "docs" / "training.md").read_text()
    section = page[: page.index("\n## ")]
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def test_every_command_and_line_works(tmp_path):
    write_dataset(tmp_path / "data" / "coco", seed=5, count=8, progress=lambda _: None)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    language_model(tmp_path / "path" / "to" / "llm")
    found = blocks()
    assert [language for language, _ in found] == ["bash", "bash", "python", "python", "python"]
    for language, code in found[:2]:
        assert language == "bash"
        for command in code.splitlines():
            # official weights can't be had in tests
            demo = " --models demo" if command.startswith("patchmint build") else ""
            program, *arguments = shlex.split(command + demo)
            assert program == "patchmint"
            done = warm.run([sys.executable, "-m", program, *arguments], cwd=tmp_path)
            assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    script = tmp_path / "train.py"
    script.write_text("\n".join(code for _, code in found[2:]))
    done = warm.run([sys.executable, script], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    lines, answers = lines[:2], lines[2:]
    assert [line[0] for line in lines] == ["1", "2"]
    assert answers
    assert all(0 <= float(figure) <= 1 for line in lines for figure in line[2:])
    saved = torch.load(tmp_path / "out" / "stage1.pt", weights_only=True)
    assert saved["loader"]["epoch"] == 2
    assert saved["selector"].keys() == PatchSelector(384, 32).state_dict().keys()


def language_model(folder):
    """A LLaMA that fits into a test, with a real byte-level tokenizer."""
    tokenizer = gpt2_like()
    small_llama(len(tokenizer), hidden_size=32, max_position_embeddings=1024).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
