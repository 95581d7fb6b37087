"""The walls around a job, as direct kernel calls. Standard library only: the fork server imports this file.

Each layer and where it is put up (Z = once in the fork server, J = in every job):

    outer wall    Z  own user*, pid, net, ipc, uts and mount namespaces (* when not root), a tmpfs as scratch, empty
                     ones over users' data; needs CAP_SYS_ADMIN or user namespaces, so absent in a stock container:
                     optional, reported
    capabilities  Z  all dropped, bounding set too
    uid           Z  root only: an id that owns nothing, when the interpreter stays readable to it: optional, reported
    no_new_privs  Z
    landlock      Z  files: read the standard library, write the scratch; TCP bind and connect refused; scopes
                  J  a second, inner domain with scopes only: the job may not signal or trace its own fork server
    seccomp       Z  sockets, exec, tracing, mounts, IPC, kernel surface, metadata (see syscalls.py)
                  J  process creation, signals to others, prctl
    limits        J  address space, CPU, file size, descriptors, core, stack, locked memory
    session       J  own session, death signal, not dumpable, descriptors closed

Covers: what syscalls.py lists; files by path (Landlock); TCP; signals. Does not cover: stat() and chdir() on a path
that the outer wall does not hide (existence and size of a file can be learned), CPU side channels, a kernel bug.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import sys
import sysconfig
from collections.abc import Callable

from services.sandbox.jail import syscalls

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long

# asm-generic numbers, the same on every machine
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NNP = 1, 4, 22, 24, 38

FS_WRITE_FILE, FS_READ_FILE, FS_READ_DIR = 1 << 1, 1 << 2, 1 << 3
FS_REMOVE_DIR, FS_REMOVE_FILE, FS_MAKE_DIR, FS_MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
FS_MAKE_SYM, FS_TRUNCATE = 1 << 12, 1 << 14
FS_ALL = (1 << 16) - 1  # ABI 5 and later: up to IOCTL_DEV
NET_ALL = 0b11  # TCP bind, TCP connect
SCOPE_ALL = 0b11  # abstract unix sockets, signals
LANDLOCK_ABI_WANTED = 6  # Linux 6.12: the first with scopes

SCRATCH_RIGHTS = (
    FS_WRITE_FILE
    | FS_READ_FILE
    | FS_READ_DIR
    | FS_REMOVE_DIR
    | FS_REMOVE_FILE
    | FS_MAKE_DIR
    | FS_MAKE_REG
    | FS_MAKE_SYM
    | FS_TRUNCATE
)

_NAMESPACES = {"mount": 0x00020000, "uts": 0x04000000, "ipc": 0x08000000, "pid": 0x20000000, "net": 0x40000000}
_NEWUSER = 0x10000000
_MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x4000, 1 << 18, 2, 4, 8


def _call(function: Callable[..., int], *args: object) -> int:
    result = function(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _long(value: int) -> ctypes.c_long:
    return ctypes.c_long(value)


# ---------------------------------------------------------------------------------------------------- Landlock


def landlock_abi() -> int:
    """ABI version, 0 where the kernel has no Landlock (or it is switched off)."""
    return max(0, int(LIBC.syscall(_long(_LANDLOCK_CREATE), None, _long(0), _long(1))))


def landlock_ruleset(fs: int, net: int, scopes: int) -> int:
    """Descriptor of a new ruleset that refuses everything in the three masks. Raises OSError."""
    attr = struct.pack("<QQQ", fs, net, scopes)
    return _call(LIBC.syscall, _long(_LANDLOCK_CREATE), attr, _long(len(attr)), _long(0))


def landlock_allow(ruleset: int, path: str | int, rights: int) -> bool:
    """Allow `rights` beneath a path or an open directory. False where the path does not exist."""
    if isinstance(path, int):
        fd = path
    else:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            return False
    try:
        if not isinstance(path, int) and not os.path.isdir(path):
            rights &= FS_READ_FILE | FS_WRITE_FILE
        _call(LIBC.syscall, _long(_LANDLOCK_ADD), _long(ruleset), _long(1), struct.pack("<Qi", rights, fd), _long(0))
    finally:
        if not isinstance(path, int):
            os.close(fd)
    return True


def landlock_restrict(ruleset: int) -> None:
    _call(LIBC.syscall, _long(_LANDLOCK_RESTRICT), _long(ruleset), _long(0))


_MIXED = {"/lib", "/usr/lib", "/usr/local/lib"}  # hold more than libraries (/usr/lib/os-release): file by file


def interpreter_files() -> list[str]:
    """What a program may read: the standard library without site-packages, shared libraries, time zones.

    No /proc, no /etc but the two files the loader and the clock need, no /tmp, no home.
    """
    paths = ["/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache"]
    for directory in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        with os.scandir(directory) as entries:
            paths += [entry.path for entry in entries if entry.name not in ("site-packages", "dist-packages")]
    for directory in _library_directories():
        if directory in _MIXED:
            with os.scandir(directory) as entries:
                paths += [entry.path for entry in entries if ".so" in entry.name and not entry.is_dir()]
        elif not any(directory == os.path.dirname(path) for path in paths):
            paths.append(directory)
    return sorted({os.path.realpath(path) for path in paths})


def _library_directories() -> set[str]:
    """Where the shared libraries mapped now come from."""
    with open("/proc/self/maps") as file:
        mapped = {line.split(None, 5)[5].strip() for line in file if ".so" in line}
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    directories = {os.path.dirname(os.path.realpath(path)) for path in mapped if path.startswith("/")}
    return {
        directory
        for directory in directories
        if not directory.startswith(stdlib) and not stdlib.startswith(directory + "/")
    } | (directories & _MIXED)


def file_ruleset(scratch_fd: int, readable: list[str]) -> int:
    """The fork server's ruleset: read the interpreter, write the scratch, a few harmless devices."""
    ruleset = landlock_ruleset(FS_ALL, NET_ALL, SCOPE_ALL)
    for path in readable:
        landlock_allow(ruleset, path, FS_READ_FILE | FS_READ_DIR)
    landlock_allow(ruleset, sysconfig.get_path("stdlib"), FS_READ_DIR)  # the import system lists it
    for path in ("/dev/zero", "/dev/random", "/dev/urandom"):
        landlock_allow(ruleset, path, FS_READ_FILE)
    landlock_allow(ruleset, "/dev/null", FS_READ_FILE | FS_WRITE_FILE)
    landlock_allow(ruleset, scratch_fd, SCRATCH_RIGHTS)
    return ruleset


# ---------------------------------------------------------------------------------------------------- seccomp


class Filter:
    """An assembled filter, laid out ready to load: a job that builds no ctypes object touches 40 pages less."""

    def __init__(self, code: bytes) -> None:
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(self._code))
        self._arguments = (_PR_SET_SECCOMP, ctypes.c_ulong(2), self._program, ctypes.c_ulong(0), ctypes.c_ulong(0))
        self._own_pid = [at for at in range(4, len(code), 8) if code[at : at + 4] == syscalls.SELF_BYTES]

    def load(self, pid: int = 0) -> None:
        """Install it on this thread (call it while there is only one), SELF meaning `pid`. Needs no_new_privs."""
        for at in self._own_pid:
            struct.pack_into("<I", self._code, at, pid)
        _call(LIBC.prctl, *self._arguments)


# ---------------------------------------------------------------------------------------------------- privileges


def no_new_privs() -> None:
    _call(LIBC.prctl, _PR_SET_NNP, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def die_with_parent() -> None:
    """SIGKILL when the parent ends. Cleared by a change of uid, so call it after that."""
    _call(LIBC.prctl, _PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))


def not_dumpable() -> None:
    _call(LIBC.prctl, _PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))


def drop_capabilities() -> None:
    """Empty the bounding, effective, permitted and inheritable sets. Raises OSError if the last three do not empty."""
    for capability in range(64):
        if LIBC.prctl(_PR_CAPBSET_DROP, *map(ctypes.c_ulong, (capability, 0, 0, 0))) < 0:
            break  # past the last capability, or no CAP_SETPCAP: then there is nothing to drop either
    header = struct.pack("<Ii", 0x20080522, 0)
    _call(LIBC.capset, header, bytes(24))


def interpreter_readable_by(uid: int) -> bool:
    """Whether every directory above the standard library lets a stranger through (not so for a Python under /root)."""
    path = os.path.realpath(sysconfig.get_path("stdlib"))
    while True:
        status = os.stat(path)
        if not (status.st_mode & 0o005 == 0o005 or status.st_uid == uid):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def drop_uid(uid: int, scratch_fd: int) -> str:
    """Become `uid` (and the group of that number), owning the scratch. Returns '' or why it was not possible."""
    if os.geteuid() != 0:
        return "not root: jobs run under the worker's own uid"
    if not interpreter_readable_by(uid):
        return "the Python installation is not readable to other users"
    try:
        os.fchown(scratch_fd, uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        return f"{error.strerror} (no CAP_SETUID or an id outside the user namespace)"
    return ""


# ---------------------------------------------------------------------------------------------------- outer wall


def enter_namespaces() -> str:
    """New pid, net, ipc, uts and mount namespaces, inside a user namespace when not root. '' or why not.

    The caller must fork: only its children are in the new pid namespace. After a reason other than '' the caller may
    be in half of them: try it in a child first.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = sum(_NAMESPACES.values())
    if LIBC.unshare(flags) == 0:
        return ""
    if LIBC.unshare(flags | _NEWUSER) < 0:
        return f"unshare: {os.strerror(ctypes.get_errno())}"
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        return f"user namespace: {error.strerror}"
    return ""


_HIDDEN = ("/boot", "/home", "/media", "/mnt", "/opt", "/proc", "/root", "/run", "/srv", "/sys", "/tmp", "/var")


def mount_scratch(path: str, megabytes: int, inodes: int, readable: list[str]) -> str:
    """A bounded tmpfs over the scratch directory, and empty ones over the places that hold users' data, so that not
    even stat() sees them; in this mount namespace only. A place that holds something `readable` stays. '' or why not.
    """
    if LIBC.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) < 0:
        return f"mount: {os.strerror(ctypes.get_errno())}"
    for place in _HIDDEN:
        if os.path.isdir(place) and not any(file.startswith(place + "/") for file in readable):
            _tmpfs(place, "size=64k,nr_inodes=64,mode=755")
    os.makedirs(path, mode=0o755, exist_ok=True)
    return _tmpfs(path, f"size={megabytes}m,nr_inodes={inodes},mode=700")


def _tmpfs(path: str, options: str) -> str:
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if LIBC.mount(b"scratch", path.encode(), b"tmpfs", flags, options.encode()) < 0:
        return f"tmpfs: {os.strerror(ctypes.get_errno())}"
    return ""


# ---------------------------------------------------------------------------------------------------- limits

SERVER_LIMITS = {"FSIZE": 4 << 20, "NOFILE": 64, "CORE": 0, "STACK": 96 << 20, "MEMLOCK": 0, "MSGQUEUE": 0}


def set_limits(limits: dict[str, int]) -> None:
    """Hard limits; maps resource names ('AS', 'CPU', ...) to values. Soft = hard. SERVER_LIMITS hold for the server
    and all its jobs; AS and CPU are each job's own. A hard limit already below ours stays (only root may raise one).
    """
    for name, value in limits.items():
        number = getattr(resource, "RLIMIT_" + name)
        try:
            resource.setrlimit(number, (value, value))
        except ValueError:
            hard = resource.getrlimit(number)[1]
            resource.setrlimit(number, (hard, hard))


def read_exactly(fd: int, size: int) -> bytes:
    """`size` bytes from the start of an open file."""
    data = os.pread(fd, size, 0)
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data


def address_space() -> int:
    """Bytes of address space this process has mapped now."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def close_all_above(fd: int) -> None:
    """Close every descriptor > fd, in one call where the kernel has close_range."""
    if LIBC.syscall(_long(436), _long(fd + 1), _long(0x7FFFFFFF), _long(0)) < 0:
        if ctypes.get_errno() != errno.ENOSYS:
            raise OSError(ctypes.get_errno(), "close_range")
        os.closerange(fd + 1, 65536)


def python_version() -> str:
    return sys.version
