"""Checkpoints: named arrays and JSON-able metadata in one safetensors file.

Nothing is ever pickled, so opening a stranger's file runs none of the stranger's code. Any safetensors
reader can open the files; the metadata is JSON text under the header's "npdiffusion" key, beside it a checksum.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, numpy as safetensors

from .device import to_device
from .files import atomic_write

CHECKSUM = "npdiffusion.sha256"  # its key in the header, beside "npdiffusion"


def save_file(path, tensors, metadata=None):
    """Write named arrays, and metadata beside them, by ``atomic_write``.

    path: the file; by custom its name ends in ``.safetensors``.
    tensors: dict of name -> array (boolean, integer, floating or complex64), on the CPU or a GPU. Values, shapes and
        dtypes come back as they were, on the CPU and in C order.
    metadata: dict of what JSON can hold, integers of any size among it (``bit_generator.state`` of
        ``np.random.default_rng`` is such a dict). Tuples come back as lists.

    Raises TypeError for values that are not such arrays or metadata that JSON cannot hold, ValueError for an array
    called "__metadata__", a name that the file format keeps for itself.
    """
    if "__metadata__" in tensors:
        raise ValueError(f"{path}: '__metadata__' cannot be an array's name in a safetensors file: rename it")
    text, arrays = json.dumps({} if metadata is None else metadata), _on_cpu(path, tensors)
    try:
        data = safetensors.save(arrays, {"npdiffusion": text, CHECKSUM: _checksum(arrays, text)})
    except SafetensorError as error:
        raise TypeError(f"{path}: {error}") from error
    with atomic_write(path) as file:
        file.write(data)


def load_file(path):
    """Read what :func:`save_file` wrote; returns (tensors, metadata). Files of other programs have empty metadata.

    Raises FileNotFoundError, or ValueError for a file that is cut short, damaged (as its checksum tells, which files of
    version 0.1 and of other programs have not), or no safetensors file at all.
    """
    try:
        data = Path(path).read_bytes()
        tensors = safetensors.load(data)
        texts = json.loads(data[8:8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        text = texts.get("npdiffusion", "{}")
        metadata = json.loads(text)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no checkpoint at {path}: check the name, or save one first") from error
    except KeyError as error:
        raise ValueError(f"{path} holds arrays of type {error}, which NumPy does not have: "
                         "convert them to F32 or F16") from error
    except (SafetensorError, ValueError) as error:  # the latter of damaged metadata
        raise ValueError(f"{path} is cut short, damaged, or not a safetensors file ({error}): "
                         "download or save it again") from error
    ours = CHECKSUM in texts or "npdiffusion" in texts and len(texts) > 1  # or it is its name that is damaged
    if ours and texts.get(CHECKSUM) != _checksum(tensors, text):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content; download or save it again")
    return tensors, metadata


def _checksum(arrays, text):
    """SHA-256 of named arrays and the metadata's text."""
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(repr((name, array.dtype.name, array.shape)).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_weights(path, state_dict, config, dtype=None):
    """Write a model's weights with the configuration that its class is built from.

    path, state_dict: as ``path`` and ``tensors`` of :func:`save_file`.
    config: JSON-able dict of the architecture's arguments, as in ``UNet(**config)``.
    dtype: None stores arrays as they are; "float16" stores the floating ones in half the space (11 significant bits),
        and they come back as float32.

    Raises as :func:`save_file`, and ValueError for another dtype or a weight beyond float16's range (65504).
    """
    if dtype not in (None, "float16"):
        raise ValueError(f"dtype must be None or 'float16', got {dtype!r}")
    state_dict = _on_cpu(path, state_dict)
    for name, array in state_dict.items():
        if dtype and np.issubdtype(array.dtype, np.floating):
            with np.errstate(over="ignore"):
                state_dict[name] = half = array.astype(np.float16)
            if not np.array_equal(np.isfinite(half), np.isfinite(array)):
                raise ValueError(f"{path}: {name!r} holds values beyond float16's 65504: save with dtype=None")
    save_file(path, state_dict, {"config": config})


def load_weights(path):
    """Read what :func:`save_weights` wrote; returns (state_dict, config).

    Raises as :func:`load_file`, and ValueError if the file holds no configuration.
    """
    tensors, metadata = load_file(path)
    if "config" not in metadata:
        raise ValueError(f"{path} holds no model configuration: it was not written by save_weights "
                         f"(load_file reads its {len(tensors)} arrays)")
    widened = {name: array.astype(np.float32) if array.dtype == np.float16 else array
               for name, array in tensors.items()}
    return widened, metadata["config"]


def _on_cpu(path, tensors):
    """{name: NumPy array in C order}: safetensors writes memory as it lies, and channels-last would be scrambled."""
    arrays = {}
    for name, array in tensors.items():
        try:  # np.ascontiguousarray would make 1-d arrays of 0-d ones and of NumPy's scalars, which pass too
            arrays[name] = np.asarray(to_device(array, "cpu"), order="C")
        except TypeError:
            raise TypeError(f"{path}: {name!r} must be a NumPy array, got {type(array).__name__} "
                            "(plain numbers, strings and lists belong in metadata)") from None
    return arrays
