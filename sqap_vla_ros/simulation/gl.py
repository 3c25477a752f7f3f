"""An OpenGL context without a screen: EGL where it opens, else OSMesa.

MuJoCo decides at its first import, by MUJOCO_GL alone, and fails late and obscurely where that does not fit the
machine. Here each library is tried, through its C interface, when the first picture is wanted; MUJOCO_GL overrides.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

HELP = (
    "no OpenGL for rendering without a screen: neither EGL nor OSMesa could be opened. "
    "Install one of them (Debian, Ubuntu: `sudo apt install libegl1 libopengl0 libgl1-mesa-dri` or "
    "`sudo apt install libosmesa6`), or set MUJOCO_GL=glfw on a desktop"
)

_OFF = ("off", "disable", "disabled", "false", "0")
_EGL_PLATFORM_DEVICE_EXT = 0x313F
_OSMESA_RGBA = 0x1908


class RenderingUnavailableError(RuntimeError):
    """This machine has no OpenGL that renders without a screen; the message says what to install."""


def create_context(width: int, height: int) -> tuple[Any, str]:
    """Open an OpenGL context (make_current, free) for pictures of this size; return it and its backend's name.

    Raises:
        RenderingUnavailableError: there is none; the message says what to install.
    """
    _load_triton_first()
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    backend = chosen or _working_backend()
    if backend in _OFF:
        raise RenderingUnavailableError(HELP if not chosen else f"MUJOCO_GL={chosen} turns rendering off: unset it")
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        elif backend == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco import GLContext
        return GLContext(width, height), backend
    except (
        Exception
    ) as error:  # every backend has its own types, and PyOpenGL raises AttributeError for a missing library
        raise RenderingUnavailableError(f"OpenGL backend {backend!r} failed ({error}); {HELP}") from error


def _load_triton_first() -> None:
    """Load Triton's library, where it is installed, before Mesa's.

    Mesa renders without a GPU through LLVM and makes its symbols global; Triton brings an LLVM of its own, would find
    Mesa's instead, and end the process when transformers imports it later.
    """
    found = importlib.util.find_spec("triton")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        library = Path(folder) / "_C" / "libtriton.so"
        if library.is_file():
            ctypes.CDLL(str(library))


def _working_backend() -> str:
    if platform.system() != "Linux":
        return "native"
    if _egl_opens():
        return "egl"
    return "osmesa" if _osmesa_opens() else "off"


def _egl_opens() -> bool:
    """Return whether some EGL device gives a display that initialises, which MuJoCo's EGL context needs."""
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL") or "libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
        egl.eglInitialize.argtypes = [ctypes.c_void_p] * 3
    except (OSError, AttributeError):
        return False
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_address)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_address)
    devices = (ctypes.c_void_p * 16)()
    count = ctypes.c_int(0)
    if not query(len(devices), devices, ctypes.byref(count)):
        return False
    displays = (get_display(_EGL_PLATFORM_DEVICE_EXT, device, None) for device in devices[: count.value])
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def _osmesa_opens() -> bool:
    library = ctypes.util.find_library("OSMesa")
    if library is None:
        return False
    try:
        osmesa = ctypes.CDLL(library)
        osmesa.OSMesaCreateContextExt.restype = ctypes.c_void_p
        osmesa.OSMesaDestroyContext.argtypes = [ctypes.c_void_p]
        context = osmesa.OSMesaCreateContextExt(_OSMESA_RGBA, 24, 8, 0, None)
    except (OSError, AttributeError):
        return False
    if not context:
        return False
    osmesa.OSMesaDestroyContext(context)
    return True
