"""Which OpenGL renders without a screen: EGL first, then OSMesa.

MuJoCo reads MUJOCO_GL once, at its first import, and fails late and obscurely when the library it names is missing.
The choice is therefore made here, before that import (`simulation/__init__.py` calls `select_backend`), by opening a
display through the C library itself.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
import sys

HELP = (
    "no OpenGL for rendering without a screen: neither EGL nor OSMesa could be opened. "
    "Install one of them (Debian, Ubuntu: `sudo apt install libegl1 libgl1-mesa-dri` or "
    "`sudo apt install libosmesa6`), or set MUJOCO_GL=glfw on a desktop"
)

_EGL_PLATFORM_DEVICE_EXT = 0x313F
_OSMESA_RGBA = 0x1908


class RenderingUnavailableError(RuntimeError):
    """This machine has no OpenGL that renders without a screen; the message says what to install."""


def select_backend() -> str:
    """Set MUJOCO_GL to a backend that opens here, unless the user or an earlier import of mujoco chose; return it.

    Returns "egl", "osmesa", "native" (macOS, Windows), "disabled" (physics works, rendering does not) or what MUJOCO_GL
    already said.
    """
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen:
        return chosen
    if platform.system() != "Linux" or "mujoco" in sys.modules:
        return "native"
    if _egl_opens():
        os.environ["MUJOCO_GL"] = "egl"
    elif _osmesa_opens():
        os.environ["MUJOCO_GL"] = "osmesa"
    else:
        os.environ["MUJOCO_GL"] = "disabled"
    return os.environ["MUJOCO_GL"]


def _egl_opens() -> bool:
    """Whether some EGL device gives a display that initialises: what MuJoCo's EGL context needs."""
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
