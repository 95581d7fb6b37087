"""Programs that misbehave, and honest ones that look odd. Each is graded on `addTwo(x) == x + 2` for 2, 10 and -5.

WRONG programs do not know the answer except through a breach, so a True verdict is a breach. RIGHT ones are honest. The
walls of our own jail are tried with all of them (tests/sandbox/test_attacks.py). Some end or fill what they run in: outside
a jail run none but those of FORGERS and PLAIN, as `python -m services.sandbox attack` does.
"""

BODY = "\nclass Solution:\n    def addTwo(self, x):\n        return x\n"
GOOD = "\nclass Solution:\n    def addTwo(self, x):\n        return x + 2\n"

ALWAYS = """
class Any{base}:
    def __eq__(self, o): return True
    def __ne__(self, o): return False
    def __hash__(self): return 4
    def __bool__(self): return True
    def __lt__(self, o): return True
    __gt__ = __le__ = __ge__ = __contains__ = __lt__
class Solution:
    def addTwo(self, x): return Any({value})
"""

FRAME_HUNT = """
import re, sys, gc
def hunt(x):
    text = []
    frame = sys._getframe()
    while frame:
        for scope in (frame.f_locals, frame.f_globals):
            for v in list(scope.values()):
                try: text.append(repr(v)[:4000])
                except Exception: pass
        text += [repr(c) for c in frame.f_code.co_consts]
        frame = frame.f_back
    for o in gc.get_objects()[:50000]:
        if type(o) in (str, bytes, list, dict, tuple):
            try: text.append(repr(o)[:2000])
            except Exception: pass
    m = re.search(r"addTwo\\(x ?= ?%d\\) ?== ?(-?\\d+)" % x, "\\n".join(text))
    return int(m.group(1)) if m else x
class Solution:
    def addTwo(self, x): return hunt(x)
"""

FRAMES = """
import os, struct
def value(n): return b"V" + b"i" + struct.pack("<I", 1) + n.to_bytes(1, "little", signed=True)
def frame(b): return struct.pack("<I", len(b)) + b
"""

WRONG = {
    # forged output and results
    "prints_success": "print('passed 3 tests'); print('{\"gt_correct\": true}')" + BODY,
    "exit_zero_in_call": "import os\nclass Solution:\n    def addTwo(self, x): os._exit(0)\n",
    "exit_zero_at_import": "import os; os._exit(0)" + BODY,
    "system_exit_in_call": "class Solution:\n    def addTwo(self, x): raise SystemExit(0)\n",
    "keyboard_interrupt": "class Solution:\n    def addTwo(self, x): raise KeyboardInterrupt\n",
    "generator_exit": "class Solution:\n    def addTwo(self, x): raise GeneratorExit\n",
    "base_exception_at_import": BODY + "class Stop(BaseException): pass\nraise Stop\n",
    "exit_70": "import os; os._exit(70)" + BODY,
    "atexit_forges": "import atexit, os\natexit.register(os.write, 3, b'Z')" + BODY,
    "forged_frames_wrong_values": FRAMES + "os.write(3, frame(b'C') + frame(b'L') + frame(value(1)) * 3 + frame(b'Z'))"
    "\nos._exit(0)" + BODY,
    "forged_end_without_answers": FRAMES + "os.write(3, frame(b'C') + frame(b'L') + frame(b'Z'))\nos._exit(0)" + BODY,
    "forged_end_twice": FRAMES + "os.write(3, frame(b'Z'))" + BODY,
    "forged_too_many_answers": FRAMES + "os.write(3, frame(b'C')+frame(b'L')+frame(value(4))*9)\nos._exit(0)" + BODY,
    "forged_unknown_tag": FRAMES + "os.write(3, frame(b'J1') * 3)\nos._exit(0)" + BODY,
    "forged_zero_length": "import os; os.write(3, bytes(4096)); os._exit(0)" + BODY,
    "forged_half_frame": "import os; os.write(3, b'\\x05\\x00'); os._exit(0)" + BODY,
    "garbage_flood": "import os\nwhile True: os.write(3, b'\\xff' * 65536)" + BODY,
    "closes_result_pipe": "import os; os.close(3)" + BODY,
    "closes_everything": "import os; os.closerange(0, 4096)" + BODY,
    "replaces_result_pipe": "import os; r, w = os.pipe(); os.dup2(w, 3)" + BODY,
    "os_exit_patched": "import os; os._exit = lambda c: None" + BODY,
    # equality and type games
    "always_equal": ALWAYS.format(base="", value=""),
    "always_equal_int": ALWAYS.format(base="(int)", value="7"),
    "always_equal_str": ALWAYS.format(base="(str)", value="'4'"),
    "always_equal_float": ALWAYS.format(base="(float)", value="0.5"),
    "class_property_lies": "class L:\n    __class__ = property(lambda s: int)\n    def __eq__(s, o): return True\n"
    "class Solution:\n    def addTwo(self, x): return L()\n",
    "metaclass_lies": "class M(type):\n    __mro__ = property(lambda c: (int, object))\n"
    "    def __instancecheck__(c, o): return True\nclass L(metaclass=M):\n"
    "    def __eq__(s, o): return True\nclass Solution:\n    def addTwo(self, x): return L()\n",
    "index_lies": "class L(int):\n    def __index__(s): return 4\n    def __int__(s): return 4\n"
    "class Solution:\n    def addTwo(self, x): return L(x)\n",
    "mock_anything": "from unittest.mock import ANY\nclass Solution:\n    def addTwo(self, x): return ANY\n",
    "not_implemented": "class Solution:\n    def addTwo(self, x): return NotImplemented\n",
    "nan": "class Solution:\n    def addTwo(self, x): return float('nan')\n",
    "returns_string": "class Solution:\n    def addTwo(self, x): return str(x + 2)\n",
    "returns_iterator": "class Solution:\n    def addTwo(self, x): yield x + 2\n",
    "returns_itself": "class Solution:\n    def addTwo(self, x): return self\n",
    "returns_type": "class Solution:\n    def addTwo(self, x): return int\n",
    "cyclic_list": "class Solution:\n    def addTwo(self, x):\n        l = []; l.append(l); return l\n",
    "dag_bomb": "class Solution:\n    def addTwo(self, x):\n        l = []\n        for _ in range(90): l = [l, l]\n"
    "        return l\n",
    "deep_tuple": "class Solution:\n    def addTwo(self, x):\n        t = ()\n        for _ in range(10**5): t = (t,)\n"
    "        return {t[0]: 1} if 0 else t\n",
    "cyclic_nodes": "class N: pass\nclass Solution:\n    def addTwo(self, x):\n        n = N(); n.val = 4; n.next = n\n"
    "        return n\n",
    "node_property_loops": "class N:\n    val = 4\n    @property\n    def next(s): return N()\n"
    "class Solution:\n    def addTwo(self, x): return N()\n",
    "endless_iterable": "class I:\n    def __iter__(s):\n        while True: yield 4\n"
    "class Solution:\n    def addTwo(self, x): return I()\n",
    "colliding_set": "class Solution:\n    def addTwo(self, x):\n        return [k * ((1 << 61) - 1) for k in range(99999)]"
    "\n",
    "huge_string": "class Solution:\n    def addTwo(self, x): return 'x' * (200 << 20)\n",
    "huge_range_list": "class Solution:\n    def addTwo(self, x): return list(range(3_000_000))\n",
    # monkeypatching
    "patch_eq_of_int": "import ctypes\n@ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object, ctypes.py_object, ctypes.c_int)\n"
    "def same(a, b, op): return True\n"
    "ctypes.c_void_p.from_address(id(int) + 200).value = ctypes.cast(same, ctypes.c_void_p).value" + BODY,
    "patch_builtins_eval": "import builtins\nbuiltins.eval = lambda *a: 4\nbuiltins.exec = lambda *a: None\n"
    "builtins.compile = lambda *a, **k: None" + BODY,
    "patch_marshal": "import marshal\nmarshal.loads = lambda b: ()" + BODY,
    "patch_channel_everywhere": "import gc, types\nfor f in gc.get_objects():\n"
    "    if isinstance(f, types.FunctionType) and f.__name__ in ('encode', 'frame', '_scalar'):\n"
    "        f.__code__ = (lambda *a, **k: b'i\\x01\\0\\0\\0\\x04').__code__" + BODY,
    "settrace_rewrites": "import sys\ndef t(f, e, a): return t\nsys.settrace(t); sys.setprofile(lambda *a: None)"
    + BODY,
    "recursion_limit_tiny": "import sys\ntry: sys.setrecursionlimit(30)\nexcept RecursionError: pass" + BODY,
    "main_tamper": "import sys\nm = sys.modules['__main__']\nfor k in list(vars(m)):\n"
    "    if callable(getattr(m, k)): setattr(m, k, lambda *a, **k: True)" + BODY,
    "shadows_exec": "exec = eval = lambda *a: None" + BODY,
    "redefines_assert": "class AssertionError(Exception):\n    def __new__(cls, *a): return None" + BODY,
    # looking for the answers
    "frames_and_heap": FRAME_HUNT,
    "reads_proc_maps": "try:\n    open('/proc/self/maps').read(); OK = True\nexcept OSError: OK = False\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if OK else x\n",
    "reads_parent_mem": "import os\ntry:\n    open('/proc/%d/mem' % os.getppid(), 'rb'); OK = True\n"
    "except OSError: OK = False\nclass Solution:\n    def addTwo(self, x): return x + 2 if OK else x\n",
    "memfd_holds_tests": "import os, re\nB = os.pread(4, 1 << 20, 0).decode('latin-1')\nclass Solution:\n"
    "    def addTwo(self, x):\n        m = re.search(r'== ?(-?\\d+)', B)\n"
    "        return int(m.group(1)) if m else x\n",
    "ptrace_parent": "import ctypes, os\nR = ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0)\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if R == 0 else x\n",
    "vm_readv_parent": "import ctypes, os\nR = ctypes.CDLL(None).syscall(310, os.getppid(), 0, 0, 0, 0, 0)\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if R == 0 else x\n",
    "environment": "import os, ctypes\nlibc = ctypes.CDLL(None); libc.getenv.restype = ctypes.c_char_p\n"
    "S = os.environ.get('SANDBOX_SECRET') or libc.getenv(b'SANDBOX_SECRET')\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if S else x\n",
    "symlink_out": "import os\ntry:\n    os.symlink('/etc/passwd', 'l'); S = open('l').read()\nexcept OSError: S = ''\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if S else x\n",
    "opens_by_dirfd": "import os\ntry:\n    S = os.open('etc/passwd', 0, dir_fd=os.open('/', os.O_PATH))\n"
    "except OSError: S = 0\nclass Solution:\n    def addTwo(self, x): return x + 2 if S else x\n",
    "reads_repository": "import sys\ntry:\n    import services.sandbox.verdicts.oracle; S = 1\nexcept ImportError: S = 0\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if S else x\n",
    # processes and signals
    "fork_answers_twice": "import os\ntry:\n    C = os.fork()\nexcept OSError: C = -1\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if C >= 0 else x\n",
    "clone_by_syscall": "import ctypes\nR = ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if R >= 0 else x\n",
    "clone3_by_syscall": "import ctypes\nb = ctypes.create_string_buffer(88)\n"
    "R = ctypes.CDLL(None).syscall(435, b, 88)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if R >= 0 else x\n",
    "posix_spawn": "import os\ntry:\n    P = os.posix_spawn('/bin/true', ['true'], {})\nexcept OSError: P = 0\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if P else x\n",
    "kills_parent": "import os, signal\ntry:\n    os.kill(os.getppid(), signal.SIGKILL); K = 1\nexcept OSError: K = 0\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if K else x\n",
    "kills_group": "import os\nfor p in (0, -1):\n    try: os.kill(p, 9)\n    except OSError: pass" + BODY,
    "sigio_by_owner": "import fcntl, os\nr, w = os.pipe()\ntry:\n    fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid()); K = 1\n"
    "except OSError: K = 0\nclass Solution:\n    def addTwo(self, x): return x + 2 if K else x\n",
    "stops_itself": "import os, signal\nclass Solution:\n    def addTwo(self, x): os.kill(os.getpid(), signal.SIGSTOP)\n",
    "kills_itself": "import os, signal\nclass Solution:\n    def addTwo(self, x): os.kill(os.getpid(), signal.SIGKILL)\n",
    "segfault": "import ctypes\nclass Solution:\n    def addTwo(self, x): return ctypes.string_at(0)\n",
    "ignores_all_signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass" + BODY,
    "non_daemon_thread_then_hang": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
    "class Solution:\n    def addTwo(self, x): time.sleep(99)\n",
    "setsid_daemon": "import os\ntry: os.setsid()\nexcept OSError: pass\nos.umask(0)" + BODY,
    # resources
    "memory_bomb": "B = []\nwhile True: B.append(bytearray(64 << 20))" + BODY,
    "mmap_bomb": "import mmap\nM = [mmap.mmap(-1, 1 << 30) for _ in range(64)]" + BODY,
    "scratch_bomb": "i = 0\nwhile True:\n    open('f%d' % i, 'wb').write(bytes(4 << 20)); i += 1\n" + BODY,
    "inode_bomb": "import os\ni = 0\nwhile True: os.mkdir('d%d' % i); i += 1\n" + BODY,
    "big_sparse_file": "f = open('s', 'wb'); f.truncate(1 << 40)" + BODY,
    "deep_directories": "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')" + BODY,
    "mode_zero_dirs": "import os\nos.mkdir('a', 0); os.mkdir('b'); os.mkdir('b/c', 0); os.mkdir('b/d', 0o111)" + BODY,
    "stderr_bomb": "import sys\nwhile True: sys.stderr.write('x' * 65536)" + BODY,
    "regex_hang": "import re\nclass Solution:\n    def addTwo(self, x): return re.match('(a+)+$', 'a' * 64 + 'b')\n",
    # the network and the kernel
    "udp_socket": "import socket\ntry:\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM); K = 1\nexcept OSError: K = 0\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if K else x\n",
    "netlink_socket": "import socket\ntry:\n    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); K = 1\n"
    "except OSError: K = 0\nclass Solution:\n    def addTwo(self, x): return x + 2 if K else x\n",
    "io_uring": "import ctypes\nb = ctypes.create_string_buffer(120)\nR = ctypes.CDLL(None).syscall(425, 4, b)\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 if R >= 0 else x\n",
    "user_namespace": "import ctypes\nR = ctypes.CDLL(None).unshare(0x10000000)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if R == 0 else x\n",
    "new_syscall_number": "import ctypes\nR = ctypes.CDLL(None).syscall(999)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if R >= 0 else x\n",
    "x32_calls": "import ctypes\nctypes.CDLL(None).syscall(0x40000000 | 39)\nOK = True\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if OK else x\n",
    "clears_death_signal": "import ctypes\nR = ctypes.CDLL(None).prctl(1, 0)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 if R == 0 else x\n",
    # unicode and parser
    "bom": "\ufeff" + GOOD,
    "null_byte": GOOD + "\0",
    "nested_parentheses": "x = " + "(" * 5000 + ")" * 5000 + GOOD,
    "nested_lists_source": "x = " + "[" * 100000 + GOOD,
    "unary_bomb": "x = " + "-" * 200000 + "1" + GOOD,
    "return_at_module_level": GOOD + "return 1\n",
    "late_future": "x = 1\nfrom __future__ import annotations" + GOOD,
    "empty": "",
    "too_long": "#" * (2 << 20) + GOOD,
    "fullwidth_return": "class Solution:\n    def addTwo(self, x):\n        return x + 3 # \uff0b\n",
    "bidi_comment": "class Solution:\n    def addTwo(self, x):\n        return x #\u202e + 2\n",
    "only_in_main_guard": "class Solution:\n    def addTwo(self, x): return x\nif __name__ == '__main__':\n"
    "    Solution.addTwo = lambda self, x: x + 2\n",
}

RIGHT = {
    "plain": GOOD,
    "crlf": GOOD.replace("\n", "\r\n"),
    "bool_for_int_subclass": "class I(int): pass\nclass Solution:\n    def addTwo(self, x): return I(x + 2)\n",
    "int_enum": "import enum\nE = enum.IntEnum('E', {'A': 4, 'B': 12, 'C': -3})\nclass Solution:\n"
    "    def addTwo(self, x): return E(x + 2)\n",
    "float_for_int": "class Solution:\n    def addTwo(self, x): return float(x + 2)\n",
    "shadows_builtins": "len = list = str = print = type = 5\nsum = isinstance = lambda *a: 0" + GOOD,
    "patched_builtins": "import builtins\nbuiltins.len = builtins.type = builtins.isinstance = lambda *a: 0\n"
    "builtins.iter = builtins.next = builtins.getattr = None" + GOOD,
    "deep_recursion": "import sys\nsys.setrecursionlimit(10**6)\ndef down(n): return 0 if n == 0 else 1 + down(n - 1)\n"
    "class Solution:\n    def addTwo(self, x): return x + 2 + down(50000) - 50000\n",
    "deep_c_recursion": "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n@lru_cache(None)\n"
    "def down(n): return 0 if n == 0 else 1 + down(n - 1)\nclass Solution:\n"
    "    def addTwo(self, x): return x + 2 + down(20000) - 20000\n",
    "thread_with_big_stack": "import threading, sys\nsys.setrecursionlimit(10**6)\nthreading.stack_size(128 << 20)\n"
    "class Solution:\n    def addTwo(self, x):\n        out = []\n"
    "        t = threading.Thread(target=lambda: out.append(x + 2)); t.start(); t.join()\n"
    "        return out[0]\n",
    "fifty_threads": "from concurrent.futures import ThreadPoolExecutor\nclass Solution:\n    def addTwo(self, x):\n"
    "        with ThreadPoolExecutor(50) as p: return sum(p.map(lambda i: 1, range(2)), x)\n",
    "leaves_a_thread": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()" + GOOD,
    "asyncio": "import asyncio\nclass Solution:\n    def addTwo(self, x):\n"
    "        async def go(): await asyncio.sleep(0); return x + 2\n        return asyncio.run(go())\n",
    "noisy": "import sys\nclass Solution:\n    def addTwo(self, x):\n        for i in range(5000): print('\\ud800', i)\n"
    "        sys.stderr.write('warning\\n'); return x + 2\n",
    "closes_stdout": "import sys\nsys.stdout.close(); sys.stderr.close()" + GOOD,
    "own_exit_patched": "import sys, os\nsys.exit = lambda *a: None" + GOOD,
    "tempfile": "import tempfile\nclass Solution:\n    def addTwo(self, x):\n"
    "        with tempfile.TemporaryFile(dir='.') as f:\n            f.write(b'ab'); return x + f.tell()\n",
    "try_socket_then_answer": "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass"
    + GOOD,
    "try_fork_then_answer": "import os\ntry: os.fork()\nexcept OSError: pass" + GOOD,
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\nsignal.alarm(1)" + GOOD,
    "signals_itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: None)\n"
    "os.kill(os.getpid(), signal.SIGUSR1)" + GOOD,
    "raises_inside": "class Solution:\n    def addTwo(self, x):\n        try: return [][x]\n"
    "        except BaseException: return x + 2\n",
    "300_mb": "class Solution:\n    def addTwo(self, x): return len(bytearray(300 << 20)) * 0 + x + 2\n",
    "nonblocking_result_pipe": "import os\nos.set_blocking(3, False)" + GOOD,
    "reads_stdin": "import sys\nclass Solution:\n    def addTwo(self, x): return x + 2 + len(sys.stdin.read())\n",
    "dataclass_and_typing": "from dataclasses import dataclass\nfrom typing import NamedTuple\n@dataclass\nclass P:\n"
    "    a: int\nclass Q(NamedTuple):\n    b: int\nclass Solution:\n"
    "    def addTwo(self, x): return P(x).a + Q(2).b\n",
    "uses_prelude": "class Solution:\n    def addTwo(self, x: int) -> Optional[int]: return pow(2, 3, 6) + x\n",
    "spends_a_second": "import time\nclass Solution:\n    def addTwo(self, x):\n        end = time.process_time() + 0.4\n"
    "        while time.process_time() < end: pass\n        return x + 2\n",
    "counts_calls": "class Solution:\n    seen = []\n    def addTwo(self, x):\n        Solution.seen.append(x)\n"
    "        assert len(set(Solution.seen)) == len(Solution.seen)\n        return x + 2\n",
    "setrlimit_lower": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))" + GOOD,
}

# Hooks, callbacks, finalizers, codecs, loops and raw memory: ways to run beside the runner, or in its place.
WRONG |= {
    "audit_hook": "import sys\ndef hook(event, args):\n    f = sys._getframe(1)\n    while f:\n"
    "        f.f_locals.update(answer=4)\n        f = f.f_back\nsys.addaudithook(hook)" + BODY,
    "profile_in_all_threads": "import sys, threading\ndef look(f, e, a):\n    for v in list(f.f_locals.values()):\n"
    "        if type(v) is int: Solution.addTwo = lambda s, x, v=v: v\nsys.setprofile(look); threading.setprofile(look)\n"
    "threading.Thread(target=lambda: None).start()" + BODY,
    "frames_of_a_thread": "import sys, threading\nclass Solution:\n    def addTwo(self, x):\n        got = []\n"
    "        def look():\n            for f in sys._current_frames().values():\n                while f:\n"
    "                    got.extend(v for v in f.f_locals.values() if type(v) is int and v != x)\n"
    "                    got.extend(c for c in f.f_code.co_consts if type(c) is int and c != x)\n"
    "                    f = f.f_back\n        t = threading.Thread(target=look); t.start(); t.join()\n"
    "        return got[-1] if got else x\n",
    "gc_callback": "import gc\ndef patch(phase, info):\n    for o in gc.get_objects():\n"
    "        if type(o) is dict and 'ChannelError' in o: o['encode'] = lambda *a: b'i\\1\\0\\0\\0\\4'\n"
    "gc.callbacks.append(patch); gc.set_threshold(1); gc.collect()" + BODY,
    "silences_the_results": "import gc\nfor o in gc.get_objects():\n"
    "    if type(o).__name__ == 'Results': o.frame = lambda *a: None" + BODY,
    "import_hook": "import builtins, sys\nreal = builtins.__import__\nbuiltins.__import__ = lambda *a, **k: real(*a, **k)\n"
    "class Finder:\n    def find_spec(self, *a): raise SystemExit(0)\nsys.meta_path.insert(0, Finder())\n"
    "sys.modules['operator'] = type('M', (), {'eq': lambda a, b: True})()" + BODY,
    "finalizer_forges": "import os, weakref\nclass K: pass\nk = K()\ndef forge():\n    for v in (4, 12):\n"
    "        b = b'Vi\\1\\0\\0\\0' + bytes([v])\n        os.write(3, len(b).to_bytes(4, 'little') + b)\n"
    "    os.write(3, b'\\1\\0\\0\\0Z'); os._exit(0)\nweakref.finalize(k, forge)\nclass Solution:\n"
    "    def addTwo(self, x):\n        global k\n        del k\n        return x\n",
    "answer_writes_when_it_dies": "import os\nclass I(int):\n    def __del__(self): os.write(3, b'\\1\\0\\0\\0Z')\n"
    "class Solution:\n    def addTwo(self, x): return I(x)\n",
    "metaclass_mro": "class M(type):\n    def __instancecheck__(c, o): return True\n"
    "    def mro(c): return [c, int, object]\nclass I(int, metaclass=M):\n    def __eq__(s, o): return True\n"
    "    def __hash__(s): return hash(4)\n    def __index__(s): return 4\nclass Solution:\n"
    "    def addTwo(self, x): return I(0)\n",
    "codec_registered": "import codecs, encodings, sys\ndef four(*a): return b'4', 1\n"
    "codecs.register(lambda n: codecs.CodecInfo(four, four, name=n)); encodings._cache.clear()\n"
    "sys.stdout.reconfigure(encoding='utf-16')\nclass Solution:\n    def addTwo(self, x): return str(x)\n",
    "loop_writes_to_descriptors": "import asyncio, os\nclass Solution:\n    def addTwo(self, x):\n        async def go():\n"
    "            loop = asyncio.get_running_loop()\n            for fd in range(3, 8):\n"
    "                try: loop.add_writer(fd, lambda fd=fd: os.write(fd, b'\\xff' * 70000))\n"
    "                except OSError: pass\n            await asyncio.sleep(0.05); return x\n        return asyncio.run(go())\n",
    "result_pipe_as_stdout": "import os, sys\nos.dup2(3, 1)\nprint('x'); sys.stdout.flush()" + BODY,
    "wakeup_into_the_results": "import os, signal, time\nos.set_blocking(3, False); signal.set_wakeup_fd(3)\n"
    "signal.signal(signal.SIGALRM, lambda *a: None); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001); time.sleep(0.1)"
    + BODY,
    "frees_none": "import ctypes\nctypes.memset(id(None), 0, 8)" + BODY,
    "two_is_four": "import ctypes\nctypes.memmove(id(2) + 24, id(4) + 24, 4)" + BODY,
    "rewrites_its_request": "import mmap, os\nm = mmap.mmap(4, os.fstat(4).st_size)\nfor i in range(4, len(m)): m[i] = 0"
    + BODY,
    "lease_and_notify": "import fcntl, os\nf = os.open('a', os.O_CREAT | os.O_RDWR)\n"
    "for c, a in ((1024, 1), (1026, 0x8000003f), (10, 9), (8, os.getppid()), (1031, 1 << 20)):\n    for d in (3, 4, f):\n"
    "        try: fcntl.fcntl(d, c, a)\n        except OSError: pass" + BODY,
    "thread_ends_the_results": "import os, threading\ndef late():\n    while True: os.write(3, b'\\1\\0\\0\\0Z')\n"
    "threading.Thread(target=late, daemon=True).start()" + BODY,
    "thread_exits": "import os, threading, time\nthreading.Timer(0.05, os._exit, (0,)).start()\nclass Solution:\n"
    "    def addTwo(self, x): time.sleep(1); return x\n",
    "deep_destructor": "class N: __slots__ = 'n'\nclass Solution:\n    def addTwo(self, x):\n        h = None\n"
    "        for _ in range(300000):\n            m = N(); m.n = h; h = m\n        del h; return x\n",
    "dump_and_exit": "import faulthandler, time\nfaulthandler.dump_traceback_later(0.1, exit=True); time.sleep(1)"
    + BODY,
    "clears_the_steps": "import sys\nclass Solution:\n    def addTwo(self, x):\n        f = sys._getframe()\n        while f:\n"
    "            for name in ('steps', 'namespace', 'request'):\n"
    "                if name in f.f_locals: f.f_locals[name].clear()\n            f = f.f_back\n        return x\n",
}

RIGHT |= {
    "traces_itself": "import sys\ndef trace(f, e, a): return trace\nsys.settrace(trace)" + GOOD,
    "profiles_itself": "import cProfile\ncProfile.Profile().enable()" + GOOD,
    "audits_itself": "import sys\nsys.addaudithook(lambda e, a: None)" + GOOD,
    "watches_the_collector": "import gc\ngc.disable(); gc.callbacks.append(lambda p, i: None); gc.collect()" + GOOD,
    "finalizers": "import weakref\nclass K: pass\nk = K(); weakref.finalize(k, print, 'x')" + GOOD,
    "own_finder": "import sys\nclass Finder:\n    def find_spec(self, *a): return None\nsys.meta_path.insert(0, Finder())\n"
    "import fractions, statistics" + GOOD,
    "interval_timer": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None)\n"
    "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)" + GOOD,
    "async_generator": "import asyncio\nclass Solution:\n    def addTwo(self, x):\n        async def ones():\n"
    "            for _ in range(2):\n                yield 1; await asyncio.sleep(0)\n"
    "        async def go(): return x + sum([v async for v in ones()])\n"
    "        return asyncio.new_event_loop().run_until_complete(go())\n",
    "colliding_keys_of_its_own": "class K:\n    def __init__(self, v): self.v = v\n    def __hash__(self): return 1\n"
    "    def __eq__(self, o): return self.v == o.v\nD = {K(i): i for i in range(300)}\n"
    "class Solution:\n    def addTwo(self, x): return D[K(2)] + x\n",
    "says_another_encoding": "# -*- coding: latin-1 -*-\nS = '\u00e9'" + GOOD,
    "traces_memory": "import tracemalloc\ntracemalloc.start(25)" + GOOD,
    "speaks_at_exit": "import atexit\natexit.register(print, 'bye')" + GOOD,
}

TESTS = [f"assert Solution().addTwo(x = {x}) == {x + 2}" for x in (2, 10, -5)]

# What a grader built otherwise is tried with: each only wants to be paid, and signals, fills and opens nothing. Name -> what
# a grader that accepts it does.
FORGERS = {
    "exit_zero_at_import": "takes an exit code of 0 for passed tests",
    "exit_zero_in_call": "takes an exit code of 0 for passed tests, though the first call never returned",
    "system_exit_in_call": "lets SystemExit(0) end the tests as if they had passed",
    "keyboard_interrupt": "counts a test that was interrupted as passed",
    "generator_exit": "counts a test that left by GeneratorExit as passed",
    "base_exception_at_import": "counts a program that never loaded as passed",
    "prints_success": "believes what the program prints",
    "os_exit_patched": "ends with the program's own os._exit",
    "always_equal": "asks the answer whether it equals the expected value",
    "always_equal_int": "asks a subclass of int whether it equals the expected value",
    "always_equal_str": "asks a subclass of str whether it equals the expected value",
    "always_equal_float": "asks a subclass of float whether it equals the expected value",
    "class_property_lies": "believes __class__",
    "metaclass_lies": "believes a metaclass",
    "metaclass_mro": "believes a metaclass about its bases",
    "index_lies": "believes __index__",
    "mock_anything": "accepts unittest.mock.ANY as an answer",
    "not_implemented": "takes NotImplemented for true",
    "frames_and_heap": "keeps the expected values where the program can read them, in frames or on the heap",
    "frames_of_a_thread": "shows the expected values to a thread of the program",
    "patch_builtins_eval": "judges with eval, exec or compile that the program may replace",
    "shadows_exec": "runs the tests in the program's own names",
    "redefines_assert": "runs the tests with the program's own AssertionError",
    "main_tamper": "judges with functions of __main__ that the program may replace",
    "import_hook": "imports while it judges, through the program's own import hook",
    "settrace_rewrites": "judges under the program's own trace function",
    "gc_callback": "judges with objects that the program finds through the collector",
    "clears_the_steps": "keeps its list of tests where the program can empty it",
    "only_in_main_guard": "runs the program as __main__",
}
PLAIN = ("crlf", "shadows_builtins", "patched_builtins", "own_exit_patched", "asyncio", "raises_inside",
         "dataclass_and_typing", "finalizers")  # fmt: skip
