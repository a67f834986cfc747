# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a release of ExLlama on this host, or remove releases that are no longer needed. Run by the role exllamav2.

usage: exllama_release.py make|prune  < job.json

make:  job = {prefix, directory, record, requirements (text, hashed), interpreter, cuda_root, jobs, ccache_dir,
       pip_cache_dir, log, extension_script}
prune: job = {prefix, keep_releases, previous (directory that was in use before, or "")}

A release is PREFIX/DIRECTORY: `tabbyapi` (a checkout at exactly the commit), `venv` (PyTorch, the engine, and the
engine's extension compiled for the cards), `build.json`, `build.log`. An environment cannot be moved, so it is made
in its place; build.json is written last and says that all of it is there and was tried. What a broken-off run
finished is not done again. Stdout is {"changed": bool}; on failure the exit status is 1 and stderr one sentence.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t

_NINJA = re.compile(r"^\[(\d+/\d+)\] .*?([\w.+-]+\.(?:o|so))\b")
_ERROR = re.compile(r"\b(error|fatal)\b(?! :)", re.IGNORECASE)
_SAID = re.compile(r"\b(error|fatal|cannot|no space|killed|not found)\b", re.IGNORECASE)

#: What one nvcc needs at most, for two architectures.
MEMORY_PER_COMPILER_MIB = 2500
#: Imports in the finished environment what the server will import, and says what it got.
TRY = """
import importlib, json, sys
package, module = sys.argv[1:]
names = {name: importlib.import_module(name) for name in (package, module)}
torch = sys.modules.get("torch")
print(json.dumps({"module": names[module].__file__, "torch_cuda": torch.version.cuda if torch else None}))
"""


#: Says where packages are installed, and where NVIDIA's are.
WHERE = """
import importlib.util, json, sysconfig
found = importlib.util.find_spec("nvidia")
print(json.dumps([sysconfig.get_path("purelib"), list(found.submodule_search_locations) if found else []]))
"""


class Failure(Exception):
    """A sentence for the person who runs the play."""


class Log:
    """The job's log: all that programs say, and short lines for who watches."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.file = path.open("w", encoding="utf-8", errors="replace", buffering=1)

    def say(self, text: str) -> None:
        self.file.write(text.rstrip("\n") + "\n")


def run(command: list[str], log: Log, what: str, cure: str, env: dict[str, str] | None = None) -> None:
    """Run a command, its output in the log. Raises Failure with the first line that names an error.

    The command inherits the lock, so what outlives this script is waited for by the next.
    """
    log.say(what)
    said: list[str] = []
    try:
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env={**os.environ, **(env or {})}, close_fds=False,
        ) as child:  # fmt: skip
            for line in child.stdout or ():
                said.append(line.strip())
                found = _NINJA.match(line)
                # ninja's own lines are whole commands: some thousand letters, of which the counter and the file tell
                log.say(f"{what} [{found[1]}] {found[2]}" if found else line)
    except OSError as exc:
        raise Failure(f"{what} failed ({command[0]}: {exc.strerror}): {cure}.") from exc
    if child.returncode:
        told = [line for line in said if line and not _NINJA.match(line) and not line.startswith("FAILED:")]
        telling = [line for line in told if _ERROR.search(line)] or [line for line in told if _SAID.search(line)]
        reason = (telling or told[-1:] or [f"exit status {child.returncode}"])[0]
        raise Failure(f"{what} failed ({reason[:300]}): {cure} (the whole log is {log.path}).")


def checkout(url: str, commit: str, tree: pathlib.Path, log: Log) -> None:
    """Put a checkout of exactly `commit` at `tree`, unless it is there."""

    def head() -> str:
        done = subprocess.run(
            ["git", "-C", str(tree), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    if (tree / ".git").is_dir() and head() == commit:
        # what somebody changed in it is not what was pinned
        git = ["git", "-C", str(tree), "reset", "--quiet", "--hard", commit]
        run(git, log, "checking the server's files", f"remove {tree}")
        return
    shutil.rmtree(tree, ignore_errors=True)
    quiet = {"GIT_TERMINAL_PROMPT": "0"}
    cure = "correct exllamav2_server_git_url or exllamav2_server_commit, and check the host's network"
    what = f"getting commit {commit[:12]} of {url}"
    run(["git", "init", "--quiet", str(tree)], log, what, cure)
    git = ["git", "-C", str(tree), "-c", "advice.detachedHead=false"]
    try:
        run([*git, "fetch", "--quiet", "--no-tags", "--depth", "1", "--", url, commit], log, what, cure, quiet)
    except Failure:
        # a server may hand out branches only; then the commit is in one of them, or nowhere
        log.say(f"{url} does not hand out a single commit; getting its branches")
        run(
            [*git, "fetch", "--quiet", "--no-tags", "--", url, "+refs/heads/*:refs/remotes/origin/*"],
            log,
            what,
            cure,
            quiet,
        )
    run([*git, "checkout", "--quiet", "--detach", commit], log, what, cure, quiet)
    if head() != commit:
        raise Failure(f"{what} failed (it is at {head() or 'nothing'}): {cure}.")
    if not (tree / "main.py").is_file():
        raise Failure(f"commit {commit[:12]} of {url} holds no main.py, so it is not TabbyAPI: {cure}.")


def environment(job: dict[str, t.Any], venv: pathlib.Path, log: Log) -> None:
    """Make the virtual environment and install the pinned packages, unless that was finished."""
    stamp = venv / "mixed_gpu_stamp"
    wanted = hashlib.sha256(job["requirements"].encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return
    what = f"making the environment for {job['record']['package']} {job['record']['version']}"
    run([job["interpreter"], "-m", "venv", "--clear", str(venv)], log, what, "install python3-venv")
    listed = venv / "requirements.txt"
    listed.write_text(job["requirements"], encoding="utf-8")
    pip = [
        str(venv / "bin/python"), "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:",
        "--no-input", "--disable-pip-version-check", "--progress-bar=off", "--requirement", str(listed),
    ]  # fmt: skip
    run(
        pip, log, "installing the pinned packages (PyTorch and NVIDIA's libraries are some GB)",
        "check the host's network, its disk, and its settings for pip", {"PIP_CACHE_DIR": job["pip_cache_dir"]},
    )  # fmt: skip
    stamp.write_text(wanted, encoding="utf-8")


def compilers(asked: int) -> int:
    """Return how many compilers run at once: what was asked, or one per core as far as memory carries them."""
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemAvailable:\s+([0-9]+) kB", file.read(), re.MULTILINE)
    by_memory = int(found[1]) // 1024 // MEMORY_PER_COMPILER_MIB if found else 1
    return asked or max(1, min(len(os.sched_getaffinity(0)), by_memory))


def extension(job: dict[str, t.Any], venv: pathlib.Path, log: Log) -> None:
    """Compile the engine's extension into the environment, for exactly the architectures of the record."""
    record = job["record"]
    module, python = record["module"], str(venv / "bin/python")
    asked = subprocess.run([python, "-c", WHERE], capture_output=True, text=True, check=True)
    packages, libraries = pathlib.Path(json.loads(asked.stdout)[0]), json.loads(asked.stdout)[1]
    target, objects = packages / f"{module}.so", venv.parent / ".objects"
    if target.exists():
        return
    pathlib.Path(job["ccache_dir"]).mkdir(parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    # PyTorch waits for ever for a run that was killed and left its lock; ours says that there is none
    for left in objects.rglob("lock"):
        left.unlink()
    nvcc = f"{job['cuda_root']}/bin/nvcc"
    # NVIDIA's packages have libraries with a version only, and a linker looks for those without
    links = objects / "links"
    links.mkdir(exist_ok=True)
    for runtime in [path for root in libraries for path in pathlib.Path(root).glob("*/lib/libcudart.so.*")]:
        (links / "libcudart.so").unlink(missing_ok=True)
        (links / "libcudart.so").symlink_to(runtime)
    env = {
        "CUDA_HOME": job["cuda_root"],
        # the toolkit out of wheels lacks headers that PyTorch includes (cusparse, cusolver); its own packages have them
        "CPATH": ":".join(str(path) for root in libraries for path in sorted(pathlib.Path(root).glob("*/include"))),
        "LIBRARY_PATH": str(links),
        "MAX_JOBS": str(compilers(job["jobs"])),
        "PYTORCH_NVCC": f"ccache {nvcc}" if shutil.which("ccache") else nvcc,
        "PATH": f"{venv}/bin:/usr/lib/ccache:{job['cuda_root']}/bin:{os.environ.get('PATH', '/usr/bin:/bin')}",
        "CCACHE_DIR": job["ccache_dir"],
        "CCACHE_BASEDIR": str(venv.parent),
        "CCACHE_NOHASHDIR": "1",
        "TORCH_CUDA_ARCH_LIST": record["arch_list"],
        "TORCH_EXTENSIONS_DIR": str(objects),
        "PYTHONUNBUFFERED": "1",
    }
    what = f"compiling {module} for {record['arch_list']}"
    cure = "see in the role's README which combination is known to work"
    cure += f"; this is PyTorch {record['torch']} and nvcc {record['nvcc']}"
    run([python, job["extension_script"], record["package"]], log, what, cure, env)
    built = [path for path in objects.rglob(f"{module}.so") if path.is_file()]
    if len(built) != 1:
        raise Failure(
            f"{what} made {len(built)} files {module}.so below {objects}; remove that directory and run the play again."
        )
    code = built[0].read_bytes()
    lacking = [text for text in record["arch_list"].split(";") if f"sm_{text.replace('.', '')}".encode() not in code]
    if lacking:
        raise Failure(f"{what} made no code for {', '.join(lacking)}: {cure}.")
    part = target.with_suffix(".part")
    shutil.copyfile(built[0], part)
    part.chmod(0o755)
    os.replace(part, target)


def tried(job: dict[str, t.Any], venv: pathlib.Path) -> dict[str, t.Any]:
    """Import engine and extension as the server will; return what was imported."""
    record = job["record"]
    done = subprocess.run(
        [str(venv / "bin/python"), "-c", TRY, record["package"], record["module"]],
        capture_output=True, text=True, check=False, cwd="/",
        env={**os.environ, "TORCH_EXTENSIONS_DIR": "/nonexistent", "CUDA_HOME": "/nonexistent"},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        hint = "" if record["build_extension"] else ", or set exllamav2_build_extension to true"
        raise Failure(
            f"{record['package']} and {record['module']} were installed but cannot be imported ({last[:300]}): correct "
            f"exllamav2_requirements_file{hint}."
        )
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def make(job: dict[str, t.Any]) -> bool:
    """Make the release unless it is there; return whether it was made."""
    prefix, record = pathlib.Path(job["prefix"]), dict(job["record"])
    release = prefix / job["directory"]
    with (prefix / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        if (release / "build.json").exists():
            return False
        release.mkdir(mode=0o755, exist_ok=True)
        log = Log(pathlib.Path(job["log"]))
        checkout(record["server"]["url"], record["server"]["commit"], release / "tabbyapi", log)
        environment(job, release / "venv", log)
        if record["build_extension"]:
            extension(job, release / "venv", log)
        log.say("trying what was made")
        record["found"] = tried(job, release / "venv")
        shutil.rmtree(release / ".objects", ignore_errors=True)
        log.say(f"{release} is complete")
        shutil.copyfile(log.path, release / "build.log")
        part = release / ".build.json"
        part.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.sync()
        os.replace(part, release / "build.json")
    return True


def running(prefix: pathlib.Path) -> set[str]:
    """Return the names of the releases that command lines of running processes name."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended
            for word in path.read_bytes().split(b"\0"):
                parents = pathlib.Path(os.fsdecode(word)).parents
                found |= {parent.name for parent in parents if parent.parent == prefix}
    return found


def prune(job: dict[str, t.Any]) -> bool:
    """Remove old and unfinished releases; return whether any was removed.

    `keep_releases` remain: the one in use, the one before, then the newest; and whatever a process still runs from,
    such as a server that was not restarted yet.
    """
    prefix = pathlib.Path(job["prefix"])
    with (prefix / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        in_use = os.path.basename(os.path.realpath(prefix / "current"))
        others = []
        for path in prefix.iterdir():
            if (
                path.is_symlink()
                or not path.is_dir()
                or path.name == in_use
                or not re.search(r"-[0-9a-f]{12}\Z", path.name)
            ):
                continue
            complete = (path / "build.json").is_file()
            made = (path / "build.json").stat().st_mtime if complete else 0
            others.append((complete, path.name == job["previous"], made, path))
        complete_ones = [entry[3] for entry in sorted(others, reverse=True) if entry[0]]
        superfluous = complete_ones[max(job["keep_releases"] - 1, 0) :]
        superfluous += [entry[3] for entry in others if not entry[0]]
        needed = running(prefix)
        doomed = [path for path in superfluous if path.name not in needed]
        for path in doomed:
            # without build.json it is unfinished, whatever becomes of the rest
            (path / "build.json").unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
    return bool(doomed)


def main() -> int:
    action, job = sys.argv[1], json.load(sys.stdin)
    os.umask(0o022)
    try:
        print(json.dumps({"changed": {"make": make, "prune": prune}[action](job)}))
    except Failure as exc:
        print(exc, file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}; correct that and run the play again.", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
