"""Check the C code of shm: by the compiler, under sanitizers, with hostile memory.

    python run.py [--seconds N] [warnings] [traffic] [races] [hostile] [python]

Needs gcc and its sanitizers; clang looks at the sources, too, where there is one. ``python`` builds the extension with
AddressSanitizer and UndefinedBehaviorSanitizer, and runs its tests over that, with the Python that runs this: it needs
ipcbus, ipcbus-shm and the test tools.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = ROOT / "transports" / "ipcbus_shm"
NATIVE = PLUGIN / "native"
BELOW_PYTHON = [NATIVE / f"{name}.c" for name in ("arena", "fault", "lock", "ring", "wait")]
INCLUDE = f"-I{sysconfig.get_path('include')}"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
CAREFUL = [*STRICT, "-Wconversion", "-Wno-sign-conversion"]
ADDRESS = ["-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# It says of each fence that it does not understand it. Those are in wait.c, and order no access but those to atomics.
THREAD = ["-g", "-O1", "-fsanitize=thread", "-Wno-tsan"]

LEFT_OUT = (
    # Limits on memory, of which a sanitizer takes terabytes; and hundreds of MiB, which take long there.
    *("no_address_space", "no_memory", "cannot_be_mapped", "too_much_that_waits", "given_back_beyond", "[memory]"),
    # What runs Python anew, once for each process, and what is about Python code above.
    *("kill", "spawn", "forkserver", "subscri", "publish", "topic", "nested", "askers", "child", "home", "fork"),
)
"""Tests that are not run over the build with sanitizers."""


def run(*command: str | Path, timeout: float = 120, **settings: str) -> str:
    """Run a command, return what it printed, and end here, with all of that, if it fails."""
    try:
        done = subprocess.run(
            command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        sys.exit(f"{' '.join(map(str, command))}\ntook more than {timeout} s\n{error.stdout}{error.stderr}")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def build(out: Path, flags: list[str], *programs: str) -> Path:
    """Build a program of this folder with the C code below Python."""
    sources = [HERE / f"{name}.c" for name in ("ends", *programs)]
    run("gcc", *STRICT, *flags, f"-I{NATIVE}", *BELOW_PYTHON, *sources, "-pthread", "-o", out)
    return out


def warnings(scratch: Path, seconds: float) -> str:
    """Have every compiler look at every file; those that Python's macros are not in, closely."""
    found = [compiler for compiler in ("gcc", "clang") if shutil.which(compiler)]
    for compiler in found:
        for source in sorted(NATIVE.glob("*.c")):
            for optimized in ("-O0", "-O3"):
                flags = CAREFUL if source in BELOW_PYTHON else [*STRICT, INCLUDE]
                run(compiler, *flags, optimized, "-c", source, "-o", scratch / "out.o")
    return f"{' and '.join(found)} found nothing"


def traffic(scratch: Path, seconds: float) -> str:
    """Send and receive from threads and processes, and kill some of these."""
    address = build(scratch / "traffic-address", ADDRESS, "traffic")
    thread = build(scratch / "traffic-thread", THREAD, "traffic")
    said = [
        f"{kind} under {program.name}: {run(program, kind, str(seconds / 10))}"
        for program, kind in ((address, "threads"), (address, "processes"), (address, "kills"), (thread, "threads"))
    ]
    return "; ".join(said)


def races(scratch: Path, seconds: float) -> str:
    """Have others die and come at chosen instants."""
    return run(build(scratch / "races", [*ADDRESS, "-Wl,--wrap=fcntl"], "races"))


def hostile(scratch: Path, seconds: float) -> str:
    """Use channels whose memory is changed by somebody else."""
    program = build(scratch / "hostile", [*ADDRESS, "-Wl,--wrap=mmap,--wrap=munmap"], "hostile")
    fixed = run(program, "--count", "2000")
    seed = str(time.time_ns() // 1000)  # the wall clock: others than last time
    return f"{fixed}; {run(program, '--seconds', str(seconds), '--seed', seed, timeout=seconds + 60)}"


def python(scratch: Path, seconds: float) -> str:
    """Run the tests of the extension, and hostile memory, over a build with sanitizers."""
    package = scratch / "ipcbus_shm"
    package.mkdir()
    for file in PLUGIN.glob("*.py"):
        shutil.copy(file, package)
    built = package / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    run("gcc", *STRICT, *ADDRESS, INCLUDE, "-shared", "-fPIC", *sorted(NATIVE.glob("*.c")), "-o", built)
    settings = {
        "PYTHONPATH": str(scratch),
        "PYTHONMALLOC": "malloc",  # or freed memory is not seen
        "LD_PRELOAD": f"{run('gcc', '-print-file-name=libasan.so')} {run('gcc', '-print-file-name=libubsan.so')}",
        # The interpreter keeps much to its end. One stack of handlers is enough where Python has its own.
        "ASAN_OPTIONS": "detect_leaks=0:use_sigaltstack=0:allocator_may_return_null=1",
    }
    where = run(sys.executable, "-c", "import ipcbus_shm._native as n; print(n.__file__)", **settings)
    if Path(where) != built:
        sys.exit(f"{where} would be tested, and not {built}")
    # The whole segment behind the real receive, send, drop and depth.
    said = run(sys.executable, HERE / "hostile.py", "--seconds", str(seconds / 4), timeout=seconds + 60, **settings)
    tests = ["tests/unit/test_shm.py", "tests/contract/test_shm.py"]
    options = ["-q", "-x", "-n", "3", "--dist", "worksteal", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(LEFT_OUT)})"]
    summary = run(sys.executable, "-m", "pytest", *tests, *options, timeout=240, **settings)
    return f"{said}; {summary.splitlines()[-1].strip('= ')}"


STEPS = {step.__name__: step for step in (warnings, traffic, races, hostile, python)}


def main() -> None:
    """Run what is asked for, or all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=20, help="for hostile memory below Python (20); the rest takes parts of that"
    )
    parser.add_argument("steps", nargs="*", metavar="step", help=", ".join(STEPS))
    asked = parser.parse_args()
    if unknown := set(asked.steps) - set(STEPS):
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    os.chdir(ROOT)
    for name in asked.steps or STEPS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ipcbus-native-") as scratch:
            said = STEPS[name](Path(scratch), asked.seconds)
        print(f"{name} ({time.monotonic() - began:.0f} s): {said}", flush=True)


if __name__ == "__main__":
    main()
