"""Windows' rules for files, on Linux: what is refused there is refused here

`WINDOWS_RULES=1 PYTHONPATH=tests/winlike python …` keeps them in that process and in all that it starts:

- a file that one of these processes has open or mapped is not renamed, replaced or deleted, nor is a folder around it;
- a file that is mapped is not emptied;
- `os.rename` takes no name that is taken, `os.replace` not the place of a folder;
- some names can't be: CON, a colon, a dot at the end;
- text without `encoding=` is read and written in cp1252, with CRLF at the ends of lines;
- processes are spawned, and there are no symbolic links.

It is Python that refuses, so what a library does in its own machine code goes unseen. Real Windows has more rules.
"""
import builtins, errno, io, multiprocessing, os, re, shutil
from pathlib import Path

switch = "WINDOWS_RULES"
real = {name: getattr(os, name) for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "open")}
real_open = io.open
elsewhere = ("/dev/", "/proc/", "/sys/")
bad_name = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|(com|lpt)\d)(\.|$)', re.I)
players = {}  # (process, when it began) → whether it keeps the rules


# Who holds a file

def keeps_rules(process: str) -> bool:
    "Whether a process was started with the switch."
    began = os.stat(f"/proc/{process}").st_ctime_ns
    if (process, began) not in players:
        with real_open(f"/proc/{process}/environ", "rb") as file:
            players[process, began] = f"{switch}=1".encode() in file.read().split(b"\0")
    return players[process, began]


def opened(process: str):
    "The paths that a process has open."
    for number in os.listdir(f"/proc/{process}/fd"):
        try: yield os.readlink(f"/proc/{process}/fd/{number}")
        except OSError: pass


def mapped(process: str):
    "The paths that a process has mapped into its memory."
    with real_open(f"/proc/{process}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            columns = line.rstrip("\n").split(maxsplit=5)
            if len(columns) == 6: yield columns[5]


def holder(path: str, ways=(opened, mapped)) -> str | None: # a sentence; None: nobody
    "Who holds a file, or a file in a folder."
    path = os.path.realpath(path)
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            if process != str(os.getpid()) and not keeps_rules(process): continue
            for way in ways:
                for held in way(process):
                    if (held == path or held.startswith(path + "/")) and not os.path.isdir(held):
                        return f"process {process} has {held} {way.__name__}"
        except OSError: pass  # the process has ended, or is another user's
    return None


# What is refused

def full(path, folder=None) -> str:
    "A path from the root on; `folder` is a number that `os.open` gave."
    path = os.fsdecode(path)
    if folder is not None: path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


def refuse_held(path: str) -> None:
    "The error for a path that somebody holds."
    if path.startswith(elsewhere) or not os.path.lexists(path): return
    if who := holder(path): raise PermissionError(errno.EACCES, f"[WinError 32] It is used by another process: {who}", path)


def refuse_name(path: str) -> None:
    "The error for a name that can't be."
    if path.startswith(elsewhere): return
    for part in path.split("/"):
        if part not in ("", ".", "..") and bad_name.search(part):
            raise OSError(errno.EINVAL, f"[WinError 123] The file name is not allowed: {part!r}", path)


def moving(name: str):
    "`os.rename` or `os.replace` as they are there."
    def move(src, dst, *, src_dir_fd=None, dst_dir_fd=None):
        old, new = full(src, src_dir_fd), full(dst, dst_dir_fd)
        refuse_name(new)
        taken = os.path.lexists(new) and not os.path.samefile(old, new)
        if taken and name == "rename": raise FileExistsError(errno.EEXIST, "[WinError 183] The file exists", new)
        if taken and os.path.isdir(new): raise PermissionError(errno.EACCES, "[WinError 5] It is a folder", new)
        for path in (old, new): refuse_held(path)
        return real[name](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    return move


def unlink(path, *, dir_fd=None):
    refuse_held(full(path, dir_fd))
    return real["unlink"](path, dir_fd=dir_fd)


def rmdir(path, *, dir_fd=None):
    refuse_held(full(path, dir_fd))
    return real["rmdir"](path, dir_fd=dir_fd)


def mkdir(path, mode=0o777, *, dir_fd=None):
    refuse_name(full(path, dir_fd))
    return real["mkdir"](path, mode, dir_fd=dir_fd)


def symlink(src, dst, *args, **kwargs):
    raise OSError(errno.EPERM, "[WinError 1314] A required privilege is not held by the client", full(dst))


def refuse_open(path, new: bool, emptied: bool) -> None:
    "The error for opening a file under a name that can't be, or for emptying one that is mapped."
    if isinstance(path, int): return
    path = full(path)
    if new and not os.path.exists(path): refuse_name(path)
    if emptied and not path.startswith(elsewhere) and os.path.isfile(path) and (who := holder(path, [mapped])):
        raise OSError(errno.EINVAL, f"[WinError 1224] It has a user-mapped section open: {who}", path)


def open_number(path, flags, mode=0o777, *, dir_fd=None):
    if dir_fd is None: refuse_open(path, flags & os.O_CREAT, flags & os.O_TRUNC)
    return real["open"](path, flags, mode, dir_fd=dir_fd)


def open_file(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    writes = any(letter in mode for letter in "wax+")
    refuse_open(file, writes, "w" in mode)
    if "b" not in mode and not isinstance(file, int):
        if encoding in (None, "locale"): encoding = "cp1252"
        if newline is None and writes: newline = "\r\n"
    return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)


def keep() -> None:
    "From now on, keep the rules, if the switch is on."
    if os.environ.get(switch) != "1" or not Path("/proc/self/maps").exists(): return
    os.rename, os.replace = moving("rename"), moving("replace")
    os.unlink = os.remove = unlink
    os.rmdir, os.mkdir, os.symlink, os.open = rmdir, mkdir, symlink, open_number
    builtins.open = io.open = open_file
    shutil._use_fd_functions = False  # `shutil.rmtree` by names, as there
    multiprocessing.set_start_method("spawn", force=True)
    try: import multiprocess
    except ImportError: return
    multiprocess.set_start_method("spawn", force=True)
