"""Syscall numbers of the two machines we run on, and a forty-line assembler that turns a policy into a seccomp filter.

    A = syscall number;  JEQ A, n -> return EPERM | ENOSYS | look at arguments;  fall through -> ALLOW

Numbers: Linux asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64); -1 where a machine has no such call.
Covers: the calls named in `POLICY`, and every number above `LAST_KNOWN` (a kernel newer than this table): ENOSYS.
Does not cover: arguments behind pointers (paths, structs), which seccomp cannot read; Landlock does those.
"""

from __future__ import annotations

import errno
import platform
import struct

# name: (x86_64, aarch64)
NUMBERS = {
    # sockets
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # process creation
    "fork": (57, -1),
    "vfork": (58, -1),
    "clone": (56, 220),
    "clone3": (435, 435),
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # signals
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    # shared memory and IPC
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    # kernel surface
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "inotify_init": (253, -1),
    "inotify_init1": (294, 26),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, -1),
    "personality": (135, 92),
    "remap_file_pages": (216, 234),
    "vmsplice": (278, 75),
    # file handles
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "mknod": (133, -1),
    "mknodat": (259, 33),
    # metadata
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "flock": (73, 32),
    # scheduling
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    # identity
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setgroups": (116, 159),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
    "lsm_set_self_attr": (460, 460),
    # machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "ioperm": (173, -1),
    "iopl": (172, -1),
    "vhangup": (153, 58),
    "sync": (162, 81),
    "syncfs": (306, 267),
    "uselib": (134, -1),
    "ustat": (136, -1),
    "sysfs": (139, -1),
    "nfsservctl": (180, 42),
    # checked arguments
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "openat": (257, 56),
    "open": (2, -1),
    "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}
LAST_KNOWN = 469  # file_setattr, Linux 6.17
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOW = 0x7FFF0000
KILL = 0x80000000
EPERM = 0x00050000 | errno.EPERM
ENOSYS = 0x00050000 | errno.ENOSYS

_LD_ABS, _JEQ, _JGE, _RET, _AND = 0x20, 0x15, 0x35, 0x06, 0x54
_NR, _ARCH = 0, 4
CLONE_THREAD = 0x00010000
SELF = 0x5E1F5E1F  # in a rule: stands for the pid of the process that loads the filter (above any pid: 2^22)
SELF_BYTES = struct.pack("<I", SELF)


def _low(arg: int) -> int:
    """Offset of the low half of an argument in `struct seccomp_data`."""
    return 16 + 8 * arg  # both machines are little endian


class SeccompRules:
    """A list of rules; `assemble()` gives the bytes of a `struct sock_filter[]`. First matching rule wins."""

    def __init__(self, machine: str | None = None) -> None:
        self.machine = machine or platform.machine()
        if self.machine not in AUDIT_ARCH:
            raise OSError(f"no syscall table for {self.machine}; have {', '.join(AUDIT_ARCH)}")
        self._column = 0 if self.machine == "x86_64" else 1
        self._rules: list[tuple[int, list[tuple[int, int, int, int]]]] = []

    def number(self, name: str) -> int:
        return NUMBERS[name][self._column]

    def refuse(self, names: str, action: int = EPERM) -> SeccompRules:
        """Every call in the space-separated `names`, whatever its arguments."""
        return self._add(names, [(_RET, 0, 0, action)])

    def refuse_unless(self, names: str, arg: int, allowed: list[int], action: int = EPERM) -> SeccompRules:
        """Refuse unless the low 32 bits of argument `arg` are one of `allowed` (the kernel reads an int there)."""
        body = [(_LD_ABS, 0, 0, _low(arg))]
        body += [(_JEQ, len(allowed) - i, 0, value) for i, value in enumerate(allowed)]
        return self._add(names, [*body, (_RET, 0, 0, action), (_RET, 0, 0, ALLOW)])

    def refuse_if(self, names: str, arg: int, refused: list[int], action: int = EPERM) -> SeccompRules:
        body = [(_LD_ABS, 0, 0, _low(arg))]
        body += [(_JEQ, len(refused) - i, 0, value) for i, value in enumerate(refused)]
        return self._add(names, [*body, (_RET, 0, 0, ALLOW), (_RET, 0, 0, action)])

    def refuse_bits(self, names: str, arg: int, mask: int, wanted: int, action: int = EPERM) -> SeccompRules:
        """Refuse when `arg & mask == wanted`."""
        body = [(_LD_ABS, 0, 0, _low(arg)), (_AND, 0, 0, mask), (_JEQ, 0, 1, wanted)]
        return self._add(names, [*body, (_RET, 0, 0, action), (_RET, 0, 0, ALLOW)])

    def _add(self, names: str, body: list[tuple[int, int, int, int]]) -> SeccompRules:
        numbers = [self.number(name) for name in names.split()]
        self._rules += [(number, body) for number in numbers if number >= 0]
        return self

    def assemble(self) -> bytes:
        """Raises ValueError when two rules name one call (the second would never be reached)."""
        numbers = [number for number, _ in self._rules]
        if len(set(numbers)) != len(numbers):
            raise ValueError(f"a syscall has two rules: {sorted({n for n in numbers if numbers.count(n) > 1})}")
        code = [(_LD_ABS, 0, 0, _ARCH), (_JEQ, 1, 0, AUDIT_ARCH[self.machine]), (_RET, 0, 0, KILL)]
        code.append((_LD_ABS, 0, 0, _NR))
        if self.machine == "x86_64":
            code += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, KILL)]  # the x32 calling convention
        code += [(_JGE, 0, 1, LAST_KNOWN + 1), (_RET, 0, 0, ENOSYS)]
        for number, body in self._rules:
            code += [(_JEQ, 0, len(body), number), *body]
        code.append((_RET, 0, 0, ALLOW))
        return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def outer_policy() -> SeccompRules:
    """What neither the fork server nor a job ever needs. Loaded once, in the fork server; jobs inherit it."""
    always = {
        "clone",
        "clone3",
        "fork",
        "vfork",
        "kill",
        "tkill",
        "tgkill",
        "rt_sigqueueinfo",
        "rt_tgsigqueueinfo",
        "prlimit64",
        "prctl",
        "fcntl",
        "ioctl",
        "openat",
        "open",
        "seccomp",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
        "pidfd_open",
    }
    policy = SeccompRules().refuse(" ".join(name for name in NUMBERS if name not in always))
    policy.refuse_unless("prlimit64", 0, [0])  # one's own limits only, and the hard ones go down only
    # F_SETOWN, F_SETOWN_EX: have the kernel signal somebody else. F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW and
    # F_SETLEASE: a lock on a file that other jobs can open is a message to them.
    policy.refuse_if("fcntl", 1, [8, 15, 6, 7, 37, 38, 1024])
    # TIOCSTI, TIOCLINUX: type into a terminal. FS_IOC_SETFLAGS (also in its 32-bit form), FS_IOC_FSSETXATTR,
    # FS_IOC_SETVERSION: marks on the scratch directory that the next job would see.
    return policy.refuse_if("ioctl", 1, [0x5412, 0x541C, 0x40086602, 0x40046602, 0x401C5820, 0x40087602])


def job_policy() -> SeccompRules:
    """On top, in the job only: no process creation, no signal to anybody else, no change of what the supervisor set.

    `SELF` is the job's pid, filled in by isolation.Filter. prctl: names and getters only, so that the death signal
    and dumpability stay as set. clone3 answers ENOSYS because its flags lie behind a pointer: the C library then
    falls back to clone, whose flags we can read, and threads work.
    """
    # GET_PDEATHSIG, GET_DUMPABLE, SET_NAME, GET_NAME, GET_NO_NEW_PRIVS, SET_VMA
    prctl_allowed = [2, 3, 15, 16, 39, 0x53564D41]
    policy = SeccompRules().refuse("fork vfork pidfd_open seccomp landlock_create_ruleset landlock_add_rule")
    policy.refuse("landlock_restrict_self tkill").refuse("clone3", ENOSYS)
    policy.refuse_bits("clone", 0, CLONE_THREAD, 0)
    policy.refuse_unless("kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo", 0, [SELF])
    return policy.refuse_unless("prctl", 0, prctl_allowed)
