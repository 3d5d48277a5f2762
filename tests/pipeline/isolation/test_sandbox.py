"""What a hostile image file can do in the child that decodes it, and what without a sandbox."""

import errno
import io
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from pipeline.isolation import sandbox
from pipeline.isolation.child import Answers, Child, ChildFailed
from pipeline.schema import ENCODED
from pipeline.stages.decode import decode_row
from pipeline.stages.prepare import Preparer
from pipeline.stages.tiling import MAX_PIXELS
from tests.support.damage import warnings_of
from tests.support.samples import RULE, jpeg, preparer

HOSTILE = "tests.pipeline.isolation.hostile"
DEEDS = Answers(pa.schema([("did", pa.string())]), 0)
SECRETS = """AWS_SECRET_ACCESS_KEY AZURE_STORAGE_KEY GOOGLE_APPLICATION_CREDENTIALS RAY_AUTH_TOKEN
    HF_TOKEN DATABASE_URL DETR_BATCH_FAULTS http_proxy""".split()

pytestmark = pytest.mark.skipif(
    bool(sandbox.why_absent()), reason=f"no sandbox here: {sandbox.why_absent()}"
)


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Child]]:
    found = {
        "confined": Child(DEEDS, HOSTILE),
        "confined, not root": Child(DEEDS, f"{HOSTILE}:become_nobody"),
        "free": Child(DEEDS, HOSTILE, opens_stores=True),
    }
    yield found
    for child in found.values():
        child.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Starts servers that greet who connects; a function of their kind gives their address."""
    servers = []

    def greet(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                with closing(server.accept()[0]) as connection:
                    connection.sendall(b"hello")

    def listen(kind: str) -> Any:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        server = socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        servers.append(server)
        server.bind(str(tmp_path / "socket") if kind == "unix" else ("127.0.0.1", 0))
        if kind != "udp":
            server.listen()
            threading.Thread(target=greet, args=(server,), daemon=True).start()
        return server.getsockname() if kind == "unix" else server.getsockname()[1]

    yield listen
    for server in servers:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.fixture
def victim() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def outcome(child: Child, deed: str, argument: Any) -> str:
    """The result of a deed in a child, or how it failed."""
    try:
        (row,) = child.stream(f"{HOSTILE}:do", (deed, argument), 60)
        return str(row["did"])
    except ChildFailed as error:
        return f"{type(error).__name__}: {error}"


FORBIDDEN = "ChildDied: killed by SIGSYS"
REFUSED = "ChildRaised: PermissionError"


@pytest.mark.parametrize(
    ("deed", "argument", "free", "confined"),
    [
        ("read_file", "/etc/passwd", "root:", REFUSED),
        ("read_file", "file", "secret", REFUSED),
        ("write_file", "new", "taken", REFUSED),
        ("delete_file", "file", "deleted", REFUSED),
        ("connect_tcp", "tcp", "hello", FORBIDDEN),
        ("send_udp", "udp", "6", FORBIDDEN),
        ("connect_unix", "unix", "hello", FORBIDDEN),
        ("become_program", "/bin/true", "ChildDied: exit code 0", FORBIDDEN),
        ("fork", "", "forked", FORBIDDEN),
        ("trace", "victim", "traced", FORBIDDEN),
        ("kill", "victim", "killed", FORBIDDEN),
        ("read_file_in_thread", "/etc/passwd", "root:", REFUSED),
        ("make_code", "", "executable", REFUSED),
        ("duplicate_pipe", "", "", "ChildRaised: OSError"),
    ],
)
def test_a_confined_child_cannot_do_what_a_free_one_can(
    deed: str,
    argument: str,
    free: str,
    confined: str,
    children: dict[str, Child],
    listener: Callable[[str], Any],
    victim: "subprocess.Popen[bytes]",
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("secret")
    told: Any = argument
    if argument in ("tcp", "udp", "unix"):
        told = listener(argument)
    elif argument == "victim":
        told = victim.pid
    elif argument in ("file", "new"):
        told = str(tmp_path / argument)
    for name in ("confined", "confined, not root"):
        found = outcome(children[name], deed, told)
        assert found.startswith(confined), name
        assert children[name].unlimited_because == ""
    assert (tmp_path / "file").read_text() == "secret" and not (tmp_path / "new").exists()
    assert victim.poll() is None
    assert outcome(children["free"], deed, told).startswith(free)


def test_secrets_do_not_reach_a_confined_child(
    children: dict[str, Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for name in SECRETS:
        assert (
            outcome(children["confined"], "read_secret", name) == f"ChildRaised: KeyError: '{name}'"
        )
        assert outcome(children["free"], "read_secret", name) == "secret"
    assert outcome(children["confined"], "read_secret", "OMP_NUM_THREADS") == "2"
    process = children["confined"]._process
    assert process is not None
    assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_a_child_inherits_no_file_but_its_pipe(tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        for opens_stores in (False, True):
            with closing(Child(DEEDS, HOSTILE, opens_stores=opens_stores)) as child:
                assert outcome(child, "repeat", "ready") == "ready"
                assert child._process is not None
                folder = Path(f"/proc/{child._process.pid}/fd")
                found = {int(path.name): os.readlink(path) for path in folder.iterdir()}
                assert [found[number] for number in (0, 1)] == ["/dev/null"] * 2
                rest = {number for number in found if number > 2}
                assert len(rest) == 1 and found[rest.pop()].startswith("socket:")
                if not opens_stores:  # the reader may print messages of the libraries of stores
                    assert found[2] == "/dev/null"


def test_limits_hold_where_there_is_no_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine for which no filter is written. What is missing is said once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import platform\nplatform.machine = lambda: 'vax'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with closing(Child(DEEDS, f"{HOSTILE}:become_nobody")) as child:
        assert "Too many open files" in outcome(child, "read_file", "/etc/passwd")
        assert child.unlimited_because == "there is none for linux on vax"
        assert "Too many open files" in outcome(child, "send_udp", 9)
        assert "can't start new thread" in outcome(child, "start_thread", "")
        assert "BlockingIOError" in outcome(child, "fork", "")
    logged = warnings_of("pipeline.stages.prepare", monkeypatch)
    prepare = Preparer(RULE)
    table = pa.Table.from_pylist([{"status": "ok", "encoded": jpeg()}], schema=ENCODED)
    for _ in range(2):
        assert [block["status"].to_pylist() for block in prepare(table)] == [["ok"]]
    prepare.child.close()
    said = [text for text in logged if "sandbox" in text]
    assert said == ["images are decoded without a sandbox: there is none for linux on vax"]


REFUSE_SECCOMP = """
import ctypes, errno, struct
from pipeline.isolation import sandbox
sandbox.forbid_new_privileges()
steps = [(sandbox.LOAD, 0, 0, 0), (sandbox.EQUAL, 0, 1, sandbox.MACHINES[machine][1]),
         (sandbox.RETURN, 0, 0, sandbox.ERRNO | errno.EPERM), (sandbox.RETURN, 0, 0, sandbox.ALLOW)]
code = b"".join(struct.pack("<HBBI", *step) for step in steps)
held = ctypes.create_string_buffer(code, len(code))
program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(held))
assert ctypes.CDLL(None).prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0  # PR_SET_SECCOMP
"""
OTHER_ABI = "sandbox.MACHINES[machine] = (1, *sandbox.MACHINES[machine][1:])\n"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (REFUSE_SECCOMP, "the kernel refuses it (EPERM)"),
        (OTHER_ABI, "the kernel ends processes with it (SIGSYS)"),
        ("", ""),
    ],
    ids=["refused", "translated", "there"],
)
def test_why_there_is_no_filter(before: str, reason: str) -> None:
    """In a container that forbids it, and where another machine's programs are translated."""
    start = (
        "import platform\nfrom pipeline.isolation import sandbox\nmachine = platform.machine()\n"
    )
    code = f"{start}{before}\nprint(sandbox.why_absent())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{reason}\n", done.stderr


def answer_of(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel does at a system call, by a reading of BPF of our own."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    steps = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at = loaded = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x06:
            return int(value)
        if code == 0x20:
            (loaded,) = struct.unpack_from("<I", call, value)
            continue
        holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}
        at += yes if holds[code] else no


@pytest.mark.parametrize(
    ("machine", "architecture", "read", "openat", "socket_", "mmap", "clone", "kill", "unknown"),
    [
        ("x86_64", 0xC000003E, 0, 257, 41, 9, 56, 62, 1000),
        ("aarch64", 0xC00000B7, 63, 56, 198, 222, 220, 129, 1000),
    ],
)
def test_the_filter_of_each_machine(
    machine: str,
    architecture: int,
    read: int,
    openat: int,
    socket_: int,
    mmap: int,
    clone: int,
    kill: int,
    unknown: int,
) -> None:
    program = sandbox.filter_program(machine, process=77)
    allowed, refused, ended = 0x7FFF0000, 0x00050000, 0x80000000

    def answer(*call: int) -> int:
        return answer_of(program, architecture, *call)

    assert answer(read) == allowed
    assert answer(openat) == refused | errno.EACCES
    assert answer(socket_) == ended
    assert (answer(mmap, 0, 9, 3), answer(mmap, 0, 9, 7)) == (allowed, refused | errno.EACCES)
    thread, new_mounts = 0x3D0F00, 0x20000
    assert (answer(clone, thread), answer(clone, 17)) == (allowed, ended)
    assert answer(clone, thread | new_mounts) == ended
    assert (answer(kill, 77), answer(kill, 78), answer(kill, 0)) == (allowed, ended, ended)
    assert answer(unknown) == refused | errno.ENOSYS
    assert answer_of(program, 0x40000003, read) == ended  # i386
    if machine == "x86_64":
        assert answer(0x40000000 | read) == ended  # x32


def images_of_all_formats() -> dict[str, bytes]:
    """Of each format that Pillow writes and reads here, in each mode."""
    Image.init()
    found = {}
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN) - {"EPS"}):
        for mode in ("RGB", "L", "P", "1", "RGBA", "CMYK", "I;16", "F", "LA", "YCbCr"):
            file = io.BytesIO()
            with suppress(OSError, ValueError, KeyError, NotImplementedError):
                Image.linear_gradient("L").resize((48, 32)).convert(mode).save(file, kind)
                found[f"{kind} {mode}"] = file.getvalue()
    assert len(found) > 60
    return found


def assert_same_rows(images: dict[str, bytes]) -> None:
    """The sandbox changes no row."""
    given = [{"image_id": name, "status": "ok", "encoded": images[name]} for name in images]
    blocks = preparer()(pa.Table.from_pylist(given, schema=ENCODED))
    rows = [row for block in blocks for row in block.to_pylist()]
    assert preparer().child.unlimited_because == ""
    for row, (name, encoded) in zip(rows, images.items(), strict=True):
        expected = decode_row(encoded, RULE, MAX_PIXELS)
        assert {column: row[column] for column in expected} == expected, name


@pytest.mark.filterwarnings("ignore")  # of Pillow, about formats and files
def test_the_sandbox_changes_no_row() -> None:
    assert_same_rows(images_of_all_formats())


@pytest.mark.filterwarnings("ignore")
def test_the_sandbox_changes_no_row_of_odd_files(testdata: Path) -> None:
    files = [path for path in sorted((testdata / "nasty").rglob("*")) if path.is_file()]
    assert_same_rows({str(path): path.read_bytes() for path in files if path.stat().st_size})


def test_an_image_of_cielab_is_decoded_in_the_sandbox() -> None:
    """Pillow loads the module of this conversion when it is first needed."""
    file = io.BytesIO()
    Image.new("LAB", (64, 48), (120, 130, 140)).save(file, "TIFF")
    table = pa.Table.from_pylist([{"status": "ok", "encoded": file.getvalue()}], schema=ENCODED)
    prepare = Preparer(RULE)
    (block,) = prepare(table)
    prepare.child.close()
    assert block["status"].to_pylist() == ["ok"], block["error"]
