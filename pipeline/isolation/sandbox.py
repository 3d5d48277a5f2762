"""The limits of a process that decodes files which nobody has checked (Linux).

`confine` gives them up for ever, in all threads of the process that calls it:

- resource limits: no new file descriptor, no byte written to a file; without the filter also no new
  process or thread;
- a seccomp filter, which lists the system calls that computing takes. Threads may start, as the
  decoder of HEIC has one, and are bound by the filter as well. System calls on files are
  refused with EACCES, because libraries look for files that they can do without (Python opens
  source files to print a warning). Network, programs, processes, signals to other processes and
  other processes' memory end the process with SIGSYS. All others are refused with ENOSYS, for
  which the C library has a second way, as on an older kernel. Memory cannot become executable.

The filter is written here, because no package fits: `pyseccomp` (0.1.2, of 2021) needs the library
libseccomp, which slim images lack, and `landlock` (1.0.0.dev5) restricts one thread, and neither
UDP nor programs. Sources: seccomp(2), the kernel's userspace-api/seccomp_filter, and the tables of
system calls in its headers asm/unistd_64.h (x86_64) and asm-generic/unistd.h (aarch64).
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
LOAD, EQUAL, AT_LEAST, HAS_BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # codes of BPF
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`
PROT_EXEC, X32 = 0x4, 0x40000000
# What glibc passes to `clone` for a thread: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS,
# PARENT_SETTID and CHILD_CLEARTID. It tries `clone3` before, which is refused with ENOSYS.
THREAD = 0x3D0F00

# Of each machine: its AUDIT_ARCH_*, the number of `seccomp`, and the numbers of system calls.
# `-` stands for one that the machine does not have.
MACHINES = {"x86_64": (0xC000003E, 317, 0), "aarch64": (0xC00000B7, 277, 1)}
ALLOWED = """
    read 0 63|write 1 64|readv 19 65|writev 20 66|close 3 57|munmap 11 215|mremap 25 216
    brk 12 214|madvise 28 233|futex 202 98|sched_yield 24 124|sched_getaffinity 204 123
    clock_gettime 228 113|clock_getres 229 114|clock_nanosleep 230 115|nanosleep 35 101
    gettimeofday 96 169|time 201 -|times 100 153|getrandom 318 278|getpid 39 172|gettid 186 178
    getppid 110 173|getrusage 98 165|getcpu 309 168|sysinfo 99 179|uname 63 160
    rt_sigaction 13 134|rt_sigprocmask 14 135|rt_sigreturn 15 139|sigaltstack 131 132
    restart_syscall 219 128|set_robust_list 273 99|rseq 334 293|exit 60 93|exit_group 231 94
"""
FILES = """
    open 2 -|openat 257 56|openat2 437 437|creat 85 -|stat 4 -|lstat 6 -|newfstatat 262 79
    statx 332 291|access 21 -|faccessat 269 48|faccessat2 439 439|readlink 89 -|readlinkat 267 78
    getcwd 79 17|getdents 78 -|getdents64 217 61|unlink 87 -|unlinkat 263 35|rename 82 -
    renameat 264 38|renameat2 316 276|mkdir 83 -|mkdirat 258 34|truncate 76 45
"""
VIOLATIONS = """
    socket 41 198|socketpair 53 199|connect 42 203|bind 49 200|listen 50 201|accept 43 202
    accept4 288 242|sendto 44 206|sendmsg 46 211|sendmmsg 307 269|execve 59 221|execveat 322 281
    fork 57 -|vfork 58 -|ptrace 101 117|process_vm_readv 310 270|process_vm_writev 311 271
    tkill 200 130|rt_sigqueueinfo 129 138|rt_tgsigqueueinfo 297 240|pidfd_open 434 434
    pidfd_getfd 438 438|pidfd_send_signal 424 424|io_uring_setup 425 425|bpf 321 280
    unshare 272 97|setns 308 268|mount 165 40
"""
OWN_PROCESS = "kill 62 129|tgkill 234 131"  # allowed if the first argument is this process
MEMORY = "mmap 9 222|mprotect 10 226"
CLONE = "clone 56 220"


def numbers(calls: str, machine: str) -> list[int]:
    """The numbers that system calls of a list above have on a machine."""
    column = MACHINES[machine][2]
    entries = [entry.split()[1:] for line in calls.splitlines() for entry in line.split("|")]
    return [int(entry[column]) for entry in entries if entry and entry[column] != "-"]


def filter_program(machine: str, process: int) -> bytes:
    """The seccomp filter as instructions of BPF, for the process with this id."""
    program = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, MACHINES[machine][0]),
        (RETURN, 0, 0, KILL),
    ]
    program.append((LOAD, 0, 0, NUMBER))
    if machine == "x86_64":  # the numbers of the other ABI of this architecture
        program += [(AT_LEAST, 0, 1, X32), (RETURN, 0, 0, KILL)]
    for calls, answer in ((ALLOWED, ALLOW), (FILES, ERRNO | errno.EACCES), (VIOLATIONS, KILL)):
        for number in numbers(calls, machine):
            program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]
    for calls, argument, code, value, yes, no in (
        (MEMORY, 2, HAS_BITS, PROT_EXEC, ERRNO | errno.EACCES, ALLOW),
        (OWN_PROCESS, 0, EQUAL, process, ALLOW, KILL),
        (CLONE, 0, EQUAL, THREAD, ALLOW, KILL),
    ):
        for number in numbers(calls, machine):
            program += [(EQUAL, 0, 4, number), (LOAD, 0, 0, ARGUMENTS + 8 * argument)]
            program += [(code, 0, 1, value), (RETURN, 0, 0, yes), (RETURN, 0, 0, no)]
    program.append((RETURN, 0, 0, ERRNO | errno.ENOSYS))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _checked(result: int) -> None:
    if result != 0:  # a positive number is the id of a thread that another filter binds
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forbid_new_privileges() -> None:
    """Programs that this process starts gain no rights by setuid bits, and crashes no core file."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _checked(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _install_filter() -> None:
    forbid_new_privileges()
    machine = platform.machine()
    code = filter_program(machine, os.getpid())
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))  # struct sock_fprog
    call = ctypes.CDLL(None, use_errno=True).syscall
    number = ctypes.c_long(MACHINES[machine][1])
    mode, flags = ctypes.c_ulong(SECCOMP_SET_MODE_FILTER), ctypes.c_ulong(SECCOMP_FILTER_FLAG_TSYNC)
    _checked(call(number, mode, flags, ctypes.c_char_p(program)))


def why_absent() -> str:
    """Why this machine has no such filter; "" if it has. A process that is forked tries it."""
    if sys.platform != "linux" or platform.machine() not in MACHINES or sys.maxsize < 2**32:
        return f"there is none for {sys.platform} on {platform.machine()}"
    process = os.fork()
    if process == 0:
        try:
            _install_filter()
            os.open("/", os.O_RDONLY)
        except OSError as error:
            os._exit(0 if error.errno == errno.EACCES else error.errno or 255)
        os._exit(255)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code < 0:
        return f"the kernel ends processes with it ({signal.Signals(-code).name})"
    return f"the kernel refuses it ({errno.errorcode.get(code, code)})" if code else ""


def confine(keep: int, with_filter: bool) -> None:
    """Give up all rights but to compute, and to read and write the file descriptor `keep`.

    The process opens nothing after this. Linux only.
    """
    import resource

    os.dup2(1, 2)  # standard output is /dev/null
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    if with_filter:
        _install_filter()
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


if __name__ == "__main__":
    print(why_absent())
