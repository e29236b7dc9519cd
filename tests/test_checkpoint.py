"""Checkpoints: exact round trips, and old files that survive whatever interrupts a save."""

import builtins
import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npdiffusion import files
from npdiffusion.checkpoint import load_file, load_weights, save_file, save_weights
from npdiffusion.files import atomic_write

DTYPES = ["float16", "float32", "float64", "complex64", "int8", "uint8", "int16", "uint16", "int32", "uint32",
          "int64", "uint64", "bool"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6)


@st.composite
def arrays(draw):
    """An array of any dtype and shape, its axes possibly permuted, reversed or strided in memory."""
    shapes = hnp.array_shapes(min_dims=0, min_side=0, max_side=4)
    array = draw(hnp.arrays(draw(st.sampled_from(DTYPES)), shapes))
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    steps = [slice(None, None, draw(st.sampled_from([1, 2, -1]))) for _ in range(array.ndim)]
    return array[(*steps, ...)]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text().filter(lambda name: name != "__metadata__"), arrays(), max_size=4),
       st.dictionaries(st.text(), JSON, max_size=3))
def test_round_trip_is_exact(tmp_path_factory, tensors, metadata):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_file(path, tensors, metadata)
    loaded, loaded_metadata = load_file(path)
    assert loaded_metadata == metadata
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        back = loaded[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert back.tobytes() == array.tobytes()  # bit for bit: tobytes always writes C order
        assert back.flags.writeable


def test_channels_last_memory(tmp_path):
    """NCHW shapes over NHWC memory, which safetensors by itself writes in the wrong order."""
    image = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    save_file(tmp_path / "a", {"image": image})
    back = load_file(tmp_path / "a")[0]["image"]
    for index in np.ndindex(image.shape):
        assert back[index] == image[index]


def test_random_state_continues_the_same_stream(tmp_path):
    rng = np.random.default_rng(7)
    rng.normal(size=5)
    rng.integers(0, 10, dtype=np.int32)  # leaves half a draw in the state
    save_file(tmp_path / "a", {}, {"rng": rng.bit_generator.state, "step": 10**30})
    _, metadata = load_file(tmp_path / "a")
    other = np.random.default_rng()
    other.bit_generator.state = metadata["rng"]
    assert metadata["step"] == 10**30
    assert other.integers(0, 10, 9, np.int32).tolist() == rng.integers(0, 10, 9, np.int32).tolist()
    assert other.normal(size=9).tolist() == rng.normal(size=9).tolist()


def test_numpy_scalars_come_back_as_0d_arrays(tmp_path):
    save_file(tmp_path / "a", {"loss": np.float32(0.5), "step": np.array(3)})
    tensors, _ = load_file(tmp_path / "a")
    np.testing.assert_array_equal(tensors["loss"], np.array(0.5, np.float32), strict=True)
    np.testing.assert_array_equal(tensors["step"], np.array(3), strict=True)


def test_other_readers_can_open_it(tmp_path):
    save_file(tmp_path / "a", {"w": np.eye(2)}, {"step": 3})
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        assert json.loads(file.metadata()["npdiffusion"]) == {"step": 3}
        np.testing.assert_array_equal(file.get_tensor("w"), np.eye(2))


def test_file_of_another_program_has_empty_metadata(tmp_path):
    from safetensors.numpy import save_file as foreign
    foreign({"w": np.eye(2)}, tmp_path / "a", {"format": "pt"})
    tensors, metadata = load_file(tmp_path / "a")
    assert metadata == {}
    np.testing.assert_array_equal(tensors["w"], np.eye(2))


@pytest.mark.parametrize("tensors, metadata, error, words", [
    ({"step": 3}, None, TypeError, "'step' must be a NumPy array, got int"),
    ({"a": np.array(["x"])}, None, TypeError, "dtype"),
    ({"a": np.array([None])}, None, TypeError, "dtype"),
    ({"__metadata__": np.eye(2)}, None, ValueError, "rename"),
    ({}, {"step": np.int64(3)}, TypeError, "int64"),
    ({}, {"a": np.eye(2)}, TypeError, "JSON"),
])
def test_refuses_what_cannot_come_back(tmp_path, tensors, metadata, error, words):
    with pytest.raises(error, match=words):
        save_file(tmp_path / "a", tensors, metadata)
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        load_file(tmp_path / "nowhere")


def test_every_truncation_is_an_error(tmp_path):
    path = tmp_path / "a"
    save_file(path, {"w": np.arange(4.0)}, {"step": 1})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut short"):
            load_file(path)


@pytest.mark.parametrize("data", [b"I am a text file, not weights", b"\x80\x04pickle" * 20, b"\xff" * 64])
def test_not_a_safetensors_file(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_file(tmp_path / "a")


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_an_error(tmp_path, bits):
    """In weights, names, shapes, metadata, the checksum and its name; of each byte some bits."""
    path = tmp_path / "a"
    save_file(path, {"w": np.arange(3, dtype=np.float32), "ä": np.array([[True], [False]])}, {"step": 1, "é": [None]})
    data = path.read_bytes()
    for i, bit in itertools.product(range(len(data)), range(bits)):
        changed = bytearray(data)
        changed[i] ^= 1 << (i + bit) % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_file(path)


@pytest.mark.parametrize("change", [
    lambda tensors, texts: tensors.update(w=tensors["w"] + 1), lambda tensors, texts: tensors.pop("b"),
    lambda tensors, texts: tensors.update(w=tensors["w"].astype(np.float64)),
    lambda tensors, texts: tensors.update(w=tensors["w"].reshape(2, 2)),
    lambda tensors, texts: tensors.update(w=tensors["b"], b=tensors["w"]),
    lambda tensors, texts: texts.update(npdiffusion='{"step": 2}'), lambda tensors, texts: texts.pop("npdiffusion")])
def test_a_checksum_that_does_not_fit(tmp_path, change):
    """Well-formed files whose content is another."""
    save_file(tmp_path / "a", {"w": np.arange(4, dtype=np.float32), "b": np.ones(4, np.float32)}, {"step": 1})
    with safetensors.safe_open(tmp_path / "a", framework="numpy") as file:
        tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    change(tensors, texts)
    safetensors.numpy.save_file(tensors, tmp_path / "a", texts)
    with pytest.raises(ValueError, match="its checksum is not that of its content; download or save it again"):
        load_file(tmp_path / "a")


def test_files_of_version_0_1_have_no_checksum(tmp_path):
    safetensors.numpy.save_file({"w": np.eye(2)}, tmp_path / "a", {"npdiffusion": '{"step": 3}'})
    tensors, metadata = load_file(tmp_path / "a")
    assert metadata == {"step": 3} and np.array_equal(tensors["w"], np.eye(2))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_changed_header_never_crashes(tmp_path_factory, data):
    """Any byte changed in the header: an honest ValueError, or a file that still loads."""
    path = tmp_path_factory.getbasetemp() / "changed"
    save_file(path, {"w": np.arange(4.0)}, {"step": 1})
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 33))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        load_file(path)
    except ValueError as error:
        assert str(path) in str(error)


def test_bfloat16_is_refused_by_name(tmp_path):
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    (tmp_path / "a").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(ValueError, match="BF16"):
        load_file(tmp_path / "a")


class FullDisk:
    """A file on a disk that fills up: takes half of the first write, then none."""

    def __init__(self, file, error):
        self.file, self.error = file, error

    def write(self, data):
        self.file.write(data[:len(data) // 2])
        self.file.flush()
        raise self.error

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()


INTERRUPTIONS = [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), RuntimeError("any")]


@pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, where, error):
    path = tmp_path / "model.safetensors"
    save_file(path, {"w": np.zeros(1000)}, {"step": 1})

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(files, "open", lambda *a: FullDisk(builtins.open(*a), error), raising=False)
        else:
            patch.setattr(files.os, where, fail)
        with pytest.raises(type(error)) as caught:
            save_file(path, {"w": np.ones(1000)}, {"step": 2})
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert "No space left" in str(caught.value) and str(path) in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    tensors, metadata = load_file(path)
    assert metadata == {"step": 1} and not tensors["w"].any()


def test_atomic_write_makes_directories_and_follows_links(tmp_path):
    with atomic_write(tmp_path / "runs" / "1" / "a") as file:
        file.write(b"1")
    link = tmp_path / "link"
    try:
        link.symlink_to(tmp_path / "runs" / "1" / "a")
    except OSError:
        pytest.skip("this system allows no symbolic links")
    with atomic_write(link) as file:
        file.write(b"2")
    assert link.is_symlink() and (tmp_path / "runs" / "1" / "a").read_bytes() == b"2"


def test_nothing_at_path_until_complete(tmp_path):
    with atomic_write(tmp_path / "a") as file:
        file.write(b"1")
        file.flush()
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"1"


needs_locks = pytest.mark.skipif(not files.flock, reason="this system has no such locks")
WRITE = ("import sys, time; from npdiffusion.files import atomic_write\n"
         "with atomic_write(sys.argv[1]) as file:\n"
         "    file.write(b'theirs'); file.flush(); print('begun', flush=True); sys.stdin.readline()")


def other_process(path):
    """Another process in the midst of writing to ``path``; it ends its work when a line comes."""
    process = subprocess.Popen([sys.executable, "-c", WRITE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parent.parent)
    assert process.stdout.readline() == "begun\n"
    return process


def write(path, data=b"ours"):
    with atomic_write(path) as file:
        file.write(data)


@needs_locks
def test_the_next_writer_removes_what_the_dead_left_and_no_more(tmp_path):
    path = tmp_path / "a[1]*.csv"
    dead, alive = other_process(path), other_process(path)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    others = [".a1.csv.01234567.tmp", ".a[1]*.csv.0123456.tmp", ".a[1]*.csv.0123456g.tmp", "a[1]*.csv.01234567.tmp",
              ".b.01234567.tmp", ".a[1]*xcsv.01234567.tmp"]
    for name in [*others, ".a[1]*.csv.01234567.tmp"]:  # the last one of version 0.1, which locked nothing
        (tmp_path / name).write_bytes(b"1")
    with atomic_write(path) as file:
        file.write(b"ours")
        write(path, b"another thread's")
        assert len(list(tmp_path.glob(".a[[]1]*.csv.*.tmp"))) == 4  # two writers', two of other names
    assert path.read_bytes() == b"ours"
    alive.communicate("end\n")
    assert path.read_bytes() == b"theirs" and alive.returncode == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*others, path.name])


@needs_locks
def test_writers_of_one_name_do_not_disturb_each_other(tmp_path):
    """Each would take another's temporary file for a left-over in the moment before it is locked."""
    path, failures = tmp_path / "a", []

    def work(n):
        for i in range(40):
            try:
                write(path, bytes([n]) * 100)
            except OSError as error:
                failures.append(error)

    some = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()
    assert not failures and len(set(path.read_bytes())) == 1 and os.listdir(tmp_path) == ["a"]


@needs_locks
def test_a_temporary_file_that_is_removed_before_it_is_locked(tmp_path, monkeypatch):
    lock, opened = files.flock, []

    def late(file, kind):
        if not opened:  # another writer is quicker
            opened.extend(tmp_path.iterdir())
            opened[0].unlink()
        return lock(file, kind)

    monkeypatch.setattr(files, "flock", late)
    write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"ours"


@pytest.mark.parametrize("locks", ["none", "refused"])
def test_without_locks_nothing_is_removed(tmp_path, monkeypatch, locks):
    """On Windows, and on file systems that have none."""
    def refused(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "flock", None if locks == "none" else refused)
    (tmp_path / ".a.01234567.tmp").write_bytes(b"1")
    write(tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == [".a.01234567.tmp", "a"]


def test_unwritable_place_names_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="could not be written"):
        save_file(tmp_path / "file" / "a", {})


CONFIG = {"channels": [32, 64], "dropout": 0.1, "attention": True, "classes": None}


def test_weights_round_trip(tmp_path):
    weights = {"conv.weight": np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
               "steps": np.array(3)}
    save_weights(tmp_path / "a", weights, CONFIG)
    loaded, config = load_weights(tmp_path / "a")
    assert config == CONFIG
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name], array, strict=True)


def test_half_precision_weights(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(64, 64)).astype(np.float32), "count": np.arange(3)}
    save_weights(tmp_path / "full", weights, CONFIG)
    save_weights(tmp_path / "half", weights, CONFIG, dtype="float16")
    loaded, _ = load_weights(tmp_path / "half")
    assert loaded["w"].dtype == np.float32 and loaded["count"].dtype == np.arange(3).dtype
    np.testing.assert_allclose(loaded["w"], weights["w"], rtol=2.0**-11, atol=2.0**-25)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    assert weights["w"].dtype == np.float32


def test_half_precision_refuses_to_overflow(tmp_path):
    with pytest.raises(ValueError, match="'w'.*65504"):
        save_weights(tmp_path / "a", {"w": np.array([1e5], np.float32)}, {}, dtype="float16")
    assert not list(tmp_path.iterdir())


def test_weights_errors(tmp_path):
    with pytest.raises(ValueError, match="dtype must be"):
        save_weights(tmp_path / "a", {}, {}, dtype="int8")
    save_file(tmp_path / "a", {"w": np.eye(2)})
    with pytest.raises(ValueError, match="no model configuration"):
        load_weights(tmp_path / "a")
