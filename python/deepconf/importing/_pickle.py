"""Pickles, read without running anything that is in them.

A pickle names functions and classes that are to be called. Here none is ever imported: a name is
plain data, or stands for a class of this module, or is refused. NumPy arrays are made here out of
their bytes, since NumPy's own way believes what the pickle says about them. Objects of vLLM and of
the authors' package become `Record`s, which hold attributes and do nothing.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from math import prod
from typing import Any, BinaryIO, NoReturn

import numpy as np

from deepconf.errors import InvalidInput

__all__ = ["Record", "load"]


class _Sealed(type):
    """A class that a pickle cannot change."""

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it sets {name} of a class")


class Record(metaclass=_Sealed):
    """An object of another package: its attributes, and no methods."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Record:
        """Takes what the real class would have."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Attributes, as a dict, or those of slots beside it."""
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update((k, v) for k, v in part.items() if isinstance(k, str))


class _Dtype(metaclass=_Sealed):
    """The type of an array: numbers and booleans only."""

    code: str

    def __new__(cls, code: Any, *_: Any) -> _Dtype:
        if not (isinstance(code, str) and re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code)):
            raise pickle.UnpicklingError(
                f"it holds an array of {code!r}: only numbers and booleans are read"
            )
        made = super().__new__(cls)
        made.code = code
        return made

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 4 else None
        if order not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise pickle.UnpicklingError(f"it holds an array whose dtype is {state!r}")
        self.code = order + self.code.lstrip("<>|=")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    if order not in ("C", "F"):
        raise pickle.UnpicklingError(f"it holds an array in the order {order!r}")
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("it holds an array without a dtype")
    if not isinstance(data, bytes | bytearray):
        raise pickle.UnpicklingError(
            f"it holds an array whose data is a {type(data).__name__} and not bytes"
        )
    shape = (shape,) if isinstance(shape, int) else shape
    if not (isinstance(shape, tuple) and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise pickle.UnpicklingError(f"it holds an array of shape {shape!r}")
    found = np.frombuffer(data, np.dtype(dtype.code))
    if prod(shape) != len(found):
        raise pickle.UnpicklingError(f"it holds {len(found)} numbers as an array {shape!r}")
    return found.reshape(shape, order=order)


class _Array(metaclass=_Sealed):
    """What NumPy's `_reconstruct` gives: an array that gets its data by `__setstate__`."""

    value: np.ndarray[Any, Any]

    def __new__(cls, *_: Any) -> _Array:
        made = super().__new__(cls)
        made.value = np.empty(0)
        return made

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise pickle.UnpicklingError(f"it holds an array of the state {type(state).__name__}")
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """So that NumPy takes it for what it is."""
        return np.array(self.value, dtype)


class _FromBuffer(metaclass=_Sealed):
    """What pickles of protocol 5 call: it gives an array at once."""

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
        return _array(data, dtype, shape, order)


class _Scalar(metaclass=_Sealed):
    """A NumPy number, which becomes a Python one."""

    def __new__(cls, dtype: Any, data: Any = b"", *_: Any) -> Any:
        return _array(data, dtype, (1,), "C")[0].item()


class _Encoded(metaclass=_Sealed):
    """How bytes are written in protocols before 3."""

    def __new__(cls, text: Any, encoding: Any = None) -> Any:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("it encodes what is no latin-1 text")
        return text.encode("latin-1")


class _Counted(dict[Any, Any], metaclass=_Sealed):
    """A dict of another kind, whose kind does not matter."""

    def __new__(cls, *_: Any) -> _Counted:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        super().__init__(*(arg for arg in args if isinstance(arg, dict)))


_BUILTINS = {kind.__name__: kind for kind in (dict, list, set, frozenset, tuple)}
_NUMPY: dict[str, type] = {
    "_reconstruct": _Array,
    "scalar": _Scalar,
    "_frombuffer": _FromBuffer,
    "dtype": _Dtype,
    "ndarray": _Array,
}
_NUMPY_MODULES = {
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("_reconstruct", "scalar"),
    "numpy._core.multiarray": ("_reconstruct", "scalar"),
    "numpy.core.numeric": ("_frombuffer",),
    "numpy._core.numeric": ("_frombuffer",),
}
# Their classes become records: nothing of these packages is imported.
_RECORDS = ("vllm.", "deepconf.outputs")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for.

        Raises:
            UnpicklingError: it is none of those that stand for data.
        """
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module == "collections" and name in ("defaultdict", "Counter"):
            return _Counted
        if module == "_codecs" and name == "encode":
            return _Encoded
        if name in _NUMPY_MODULES.get(module, ()):
            return _NUMPY[name]
        if module.startswith(_RECORDS) and name.isidentifier():
            return _Sealed(name, (Record,), {})
        raise pickle.UnpicklingError(
            f"it wants {module}.{name}, which could run code: only plain data, NumPy arrays of "
            "numbers, and the outputs of vLLM and of the authors' package are read"
        )

    def persistent_load(self, pid: Any) -> Any:
        """There is nothing outside the pickle.

        Raises:
            UnpicklingError: always.
        """
        raise pickle.UnpicklingError(f"it refers to something outside of it, {pid!r}")


def load(file: BinaryIO, place: str) -> Any:
    """The data in a pickle.

    Raises:
        InvalidInput: it is damaged, or holds anything else; the message says what.
    """
    try:
        return _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise InvalidInput(f"{place}: this pickle is refused: {error}") from error
    except (MemoryError, RecursionError, OverflowError) as error:
        raise InvalidInput(f"{place}: this pickle is refused: it is too large or deep") from error
    except Exception as error:  # A damaged one may ask for anything.
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"{place}: this pickle is damaged or hostile: {reason}") from error
