"""Journals on disks that fill up, and what of a machine and a command must not get into files."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_backend import facts_of

from calibration.collect import journal as module
from calibration.collect import provenance
from calibration.collect.board import check_board
from calibration.collect.journal import Journal, read_journal
from calibration.collect.point import Point
from simulator.device import load_device
from simulator.errors import UserError

POINT = Point("static_batch", 2, 64, 8, 2)
MANIFEST = {"set": "s", "asked": {}, "gpu": "l4", "seed": 0, "facts": facts_of("Qwen/Qwen3-0.6B"), "plan": [POINT]}


class Disk:
    """`os.write` of a disk with room for `room_byte` more; like the real one it writes what fits, then refuses."""

    def __init__(self, monkeypatch):
        self.room_byte, self._write = None, os.write
        monkeypatch.setattr(module.os, "write", self)

    def __call__(self, file, data):
        if self.room_byte is None:
            return self._write(file, data)
        if not self.room_byte:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._write(file, bytes(data)[: self.room_byte])
        self.room_byte -= written
        return written


@pytest.mark.parametrize("room_byte", [0, 1, 20])
def test_a_full_disk_loses_the_line_that_did_not_fit_and_none_after_it(tmp_path, monkeypatch, room_byte):
    disk = Disk(monkeypatch)
    with Journal(tmp_path / "j") as journal:
        journal.start(MANIFEST)
        disk.room_byte = room_byte
        with pytest.raises(UserError, match="cannot be written: No space left on device"):
            journal.failed(POINT, "did not fit")
        disk.room_byte = None  # somebody has made room
        journal.failed(POINT, "fitted")
    found = read_journal(tmp_path / "j")
    assert [failure.reason for failure in found.failures] == ["fitted"]
    assert found.torn == (room_byte > 0)


def test_a_lock_that_cannot_be_had_leaves_no_file_open(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with pytest.raises(UserError, match="cannot be written: No locks available"):
        Journal(tmp_path / "j").__enter__()
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


@pytest.mark.parametrize(
    ("word", "harmless"),
    [
        ("--base-url=http://me:hunter2@host:8000/v1?key=hunter2", "--base-url=http://host:8000/v1"),
        ("http://me:hunter2@host:8000/v1#hunter2", "http://host:8000/v1"),
        ("me:hunter2@host:8000", "host:8000"),
        ("http://me:hunt/er2@host", "http://host"),
        ("http://me:hunt#er2@[::1", "http://[::1"),
        ("--out=/home/alice/secret-project/m", "--out=m"),
        ("--set=download_dir=/home/alice/models", "--set=download_dir=models"),
        ("download_dir=~/models", "download_dir=models"),
        ("../alice/config.json", "config.json"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("--set=max_num_seqs=64", "--set=max_num_seqs=64"),
        (".", "."),
    ],
)
def test_words_of_a_command_lose_folders_and_credentials(word, harmless):
    assert provenance.command_line([word]) == f"calibrate {harmless}"


def test_a_folder_that_is_there_loses_its_parents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice" / "out").mkdir(parents=True)
    assert provenance.command_line(["--out", "alice/out"]) == "calibrate --out out"


@given(st.text(min_size=1), st.text(min_size=1), st.sampled_from(["", "--base-url=", "--set=x="]))
def test_no_password_survives(user, password, before):
    word = f"{before}http://{user}:secret{password}secret@host/v1"
    assert "secret" not in provenance.command_line([word])
    assert "secret" not in provenance.without_secrets(word.removeprefix(before))


@pytest.mark.parametrize("name", ["api_key", "API_KEYS", "hf_token", "aws_access_key_id", "my_passwd", "PWD", "cookie"])
def test_names_of_secrets(name):
    assert provenance.looks_secret(name)


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "tokenizer", "api_key_env", "monkey", "keyed", "bypass"])
def test_names_of_no_secrets(name):
    assert not provenance.looks_secret(name)


JETSON = {"name": "Orin", "driver_version": None, "power_mode": "MAXN", "min_sm_clock_hz": 3e8, "max_sm_clock_hz": 1e9,
          "clocks_locked": False, "rails": ["VDD_IN"]}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ["clocks are not locked"]),
        ({"clocks_locked": True}, []),
        ({"clocks_locked": True, "power_mode": None}, ["does not tell its power mode, which is taken to be MAXN"]),
    ],
)
def test_a_jetson_that_is_not_set_up_for_measuring_is_said(monkeypatch, change, said):
    monkeypatch.setattr(provenance, "jetson_facts", lambda: JETSON | change)
    found = provenance.board()
    assert found["jetson"].get("clocks_locked") == (JETSON | change)["clocks_locked"]
    warnings = check_board(load_device("orin"), found)
    assert len(warnings) == len(said) and all(words in text for words, text in zip(said, warnings))


def test_gpus_stay_unnamed():
    uuid = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
    for value, kept in ((uuid, "GPU-UUID"), (f"0,{uuid}", "0,GPU-UUID"), ("MIG-8932f937-d72c", "MIG-UUID"),
                        (f"MIG-{uuid}/1/2", "MIG-GPU-UUID"), ("0,1", "0,1")):  # fmt: skip
        assert provenance.variables({"CUDA_VISIBLE_DEVICES": value}) == {"CUDA_VISIBLE_DEVICES": kept}
