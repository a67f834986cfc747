# SPDX-License-Identifier: GPL-3.0-or-later
"""Build llama.cpp on this host, or remove builds that are no longer needed. Run by the role llama_cpp.

usage: llama_cpp_build.py check|build|prune  < job.json

Everything that a person may want to read goes to the log that the job names. Stdout is one JSON object,
{"changed": ...}. On failure the exit status is 1, and stderr is one sentence. All work is done under a lock; a build
appears under its final name only when it is complete and has been run. When the same build is under way already, for
example since a play that was interrupted, this one waits for it and goes on from what it left.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import typing as t
import urllib.error
import urllib.request

MIB = 1 << 20
_DIRECTORY = re.compile(r".+-[0-9a-f]{12}\Z")
_NINJA_LINE = re.compile(r"\[[0-9]+/[0-9]+ |FAILED: ")
_ERROR = re.compile(r"\b(error|fatal)(:| at )", re.IGNORECASE)
_TROUBLE = re.compile(r"(error|fatal|not found|cannot|killed|no space)", re.IGNORECASE)
_VERSION = re.compile(r"build:? ([0-9]+), commit ([0-9A-Za-z]+)|version: ([0-9]+) \(([0-9A-Za-z]+)\)")
# where distributions put programs that are not in PATH
_HIDDEN_PROGRAM_DIRS = ("usr/libexec/*/llama/bin", "usr/lib/*/llama/bin", "usr/libexec/llama.cpp", "usr/lib/llama.cpp")


class Failure(Exception):
    """A sentence for the person who runs the play."""


class Log:
    """The job's log; every line is complete, so that a follower can show it."""

    def __init__(self, path: pathlib.Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        # without a buffer: what did not fit on a full disk must not fail again when the file is closed
        self.file = path.open("wb", buffering=0)

    def say(self, text: str) -> None:
        self.file.write(text.encode("utf-8", errors="replace") + b"\n")

    def size_bytes(self) -> int:
        return self.path.stat().st_size

    def last_error(self, since_bytes: int) -> str:
        """Return what most probably says what went wrong, of all that was written after the first `since_bytes`."""
        with self.path.open("rb") as file:
            file.seek(since_bytes)
            text = file.read().decode("utf-8", errors="replace")
        # ninja's lines name files, and those tell nothing, whatever words they contain
        lines = [line.strip() for line in text.splitlines() if line.strip() and not _NINJA_LINE.match(line)]
        telling = [index for index, line in enumerate(lines) if _ERROR.search(line)]
        telling = telling or [index for index, line in enumerate(lines) if _TROUBLE.search(line)]
        if not telling:
            return (lines[-1:] or ["nothing was printed"])[0][:300]
        # the first error explains those after it; CMake puts its reason into the lines below
        first = lines[telling[0]]
        if first.startswith("CMake Error"):
            first = " ".join(lines[telling[0] : telling[0] + 3]).partition(" Call Stack")[0]
        return first[:300]


class Lock:
    """One build at a time on a host. Children inherit the lock: it is held until the last compiler has ended.

    Who wants what the holder is making waits for it. Raises Failure, or LookupError with `give_way`, when the holder is
    making something else.
    """

    def __init__(self, path: pathlib.Path, what: str, give_way: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self.file.seek(0)
            holder = self.file.read().strip() or "an unknown process"
            if give_way:
                raise LookupError(holder) from exc
            if not holder.startswith(f"{what},"):
                raise Failure(
                    f"another build of llama.cpp is under way on this host ({holder}, lock {path}); "
                    "wait until it has ended, then run the play again."
                ) from exc
            fcntl.flock(self.file, fcntl.LOCK_EX)
        self.file.truncate(0)
        self.file.write(f"{what}, process {os.getpid()}, since {_now()}\n")
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")  # noqa: UP017


def _run(argv: list[str], log: Log, lock: Lock, what: str, env: dict[str, str] | None = None) -> None:
    """Run a program with its output in the log. Raises Failure saying that `what` failed, and why."""
    log.say("$ " + " ".join(argv))
    log.say(what)
    start = log.size_bytes()
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log.file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            pass_fds=[lock.fileno()],
            check=False,
        )
    except OSError as exc:
        raise Failure(f"{what} failed: {argv[0]} cannot be run ({exc.strerror}); run the whole role.") from exc
    if done.returncode != 0:
        raise Failure(f"{what} failed: {log.last_error(start)} (the whole log is {log.path}).")


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(8 * MIB):
            digest.update(chunk)
    return digest.hexdigest()


def _free_mib(path: pathlib.Path) -> int:
    while not path.exists():
        path = path.parent
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize // MIB


def _available_memory_mib() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemAvailable:\s+([0-9]+) kB", file.read(), re.MULTILINE)
    return int(found.group(1)) // 1024 if found else 0


def check_resources(job: dict[str, t.Any]) -> None:
    """Raise Failure when the disk or the memory is too small for a build."""
    prefix = pathlib.Path(job["prefix"])
    for path, wanted in ((prefix, job["disk_mib"]), (pathlib.Path(job["download_dir"]), job["download_mib"])):
        free = _free_mib(path)
        if free < wanted:
            raise Failure(
                f"the file system of {path} has {free} MiB free and a build of llama.cpp needs {wanted} MiB; "
                f"free {wanted - free} MiB there, or name another directory."
            )
    available = _available_memory_mib()
    if available < job["memory_mib"]:
        raise Failure(
            f"{available} MiB of memory are available and compiling llama.cpp needs {job['memory_mib']} MiB; "
            "stop what uses the memory, or add memory or swap."
        )


def _jobs(job: dict[str, t.Any]) -> int:
    """Return how many compilers run at once: what was asked, or all cores as far as memory carries them."""
    if job["jobs"]:
        return int(job["jobs"])
    return max(1, min(len(os.sched_getaffinity(0)), _available_memory_mib() // job["memory_per_job_mib"]))


def _cached(path: pathlib.Path, sha256: str, log: Log) -> bool:
    if not path.is_file():
        return False
    log.say(f"checking {path}")
    if _sha256(path) == sha256:
        return True
    log.say(f"{path} does not have the SHA-256 {sha256}; getting it again")
    return False


def _fetch_sdist(source: dict[str, t.Any], job: dict[str, t.Any], log: Log, lock: Lock) -> pathlib.Path:
    """Return the verified source distribution, through pip unless it is in the cache."""
    downloads = pathlib.Path(job["download_dir"])
    archive = downloads / f"llama_cpp_python-{source['version']}.tar.gz"
    if _cached(archive, source["sha256"], log):
        return archive
    requirement = f"llama-cpp-python=={source['version']}"
    fresh = pathlib.Path(job["work"]) / f"download-{os.getpid()}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        (fresh / "requirements.txt").write_text(f"{requirement} --hash=sha256:{source['sha256']}\n", encoding="utf-8")
        argv = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
        argv += ["--progress-bar", "off", "--no-deps", "--no-binary", "llama-cpp-python", "--require-hashes"]
        argv += ["--dest", str(fresh), "--requirement", str(fresh / "requirements.txt")]
        try:
            _run(argv, log, lock, f"downloading {requirement}")
        except Failure as exc:
            if "DO NOT MATCH THE HASHES" in log.path.read_text(encoding="utf-8", errors="replace"):
                raise Failure(
                    f"the source {requirement} does not have the SHA-256 {source['sha256']}, so nothing was replaced; "
                    "correct llama_cpp_sdist_sha256, or do not trust this download."
                ) from exc
            raise
        got = fresh / archive.name
        if not got.is_file() or _sha256(got) != source["sha256"]:
            raise Failure(f"pip did not bring {archive.name} with the expected SHA-256; the whole log is {log.path}.")
        _move_into(got, archive)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return archive


def _move_into(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Move a complete file to its place, also across file systems, so that nobody ever sees half of it."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    part = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        shutil.move(source, part)
        os.replace(part, destination)
    finally:
        part.unlink(missing_ok=True)


def _fetch_archive(source: dict[str, t.Any], job: dict[str, t.Any], log: Log) -> pathlib.Path:
    """Return the verified archive, downloaded unless it is in the cache."""
    url, sha256 = job["archive_url"], source["sha256"]
    archive = pathlib.Path(job["download_dir"]) / f"llama.cpp-{sha256[:12]}.tar"
    if _cached(archive, sha256, log):
        return archive
    part = pathlib.Path(job["work"]) / f"download-{os.getpid()}.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        log.say(f"downloading {url}")
        with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            done = shown = 0
            while chunk := answer.read(MIB):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if done - shown >= 4 * MIB:
                    shown = done
                    log.say(f"downloaded {done // MIB} of {total // MIB if total else '?'} MiB of llama.cpp")
        if total and done != total:
            raise Failure(f"the download of {url} broke off after {done} of {total} bytes; run the play again.")
        if digest.hexdigest() != sha256:
            raise Failure(
                f"{url} has the SHA-256 {digest.hexdigest()} and not {sha256}, so nothing was replaced; "
                "correct llama_cpp_archive_sha256, or do not trust this archive."
            )
        _move_into(part, archive)
    except (urllib.error.URLError, http.client.HTTPException, ValueError, OSError) as exc:
        reason = exc if isinstance(exc, urllib.error.HTTPError) else getattr(exc, "reason", None) or exc
        raise Failure(f"{url} cannot be downloaded: {reason}; check llama_cpp_archive_url and the network.") from exc
    finally:
        part.unlink(missing_ok=True)
    return archive


def _is_tree(path: pathlib.Path) -> bool:
    return (path / "CMakeLists.txt").is_file() and (path / "ggml").is_dir() and (path / "tools").is_dir()


def _unpack(archive: pathlib.Path, tree: pathlib.Path, log: Log, lock: Lock) -> None:
    """Put the llama.cpp tree inside the archive at `tree`, at once or not at all."""
    part = tree.with_name(tree.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    argv = ["tar", "-x", "-f", str(archive), "-C", str(part), "--no-same-owner", "--no-same-permissions"]
    _run(argv, log, lock, f"unpacking {archive}")
    tops = [part, *(path for path in part.iterdir() if path.is_dir())]
    for candidate in [path for top in tops for path in (top, top / "vendor/llama.cpp")]:
        if _is_tree(candidate):
            os.rename(candidate, tree)
            shutil.rmtree(part, ignore_errors=True)
            return
    raise Failure(f"{archive} holds no source tree of llama.cpp; correct the source.")


def _fetch_git(source: dict[str, t.Any], tree: pathlib.Path, log: Log, lock: Lock) -> None:
    """Put a shallow checkout at `tree`, at once or not at all."""
    part = tree.with_name(tree.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    url, version = source["url"], source["version"]
    what = f"getting {version} from {url}"
    quiet = {"GIT_TERMINAL_PROMPT": "0"}
    _run(["git", "init", "--quiet", str(part)], log, lock, what, quiet)
    git = ["git", "-C", str(part), "-c", "advice.detachedHead=false"]
    _run([*git, "fetch", "--progress", "--no-tags", "--depth", "1", "--", url, version], log, lock, what, quiet)
    _run([*git, "checkout", "--quiet", "FETCH_HEAD"], log, lock, what, quiet)
    if not _is_tree(part):
        raise Failure(
            f"{version} of {url} is no source tree of llama.cpp; correct llama_cpp_git_url or llama_cpp_git_version."
        )
    os.rename(part, tree)


def _source_tree(job: dict[str, t.Any], record: dict[str, t.Any], log: Log, lock: Lock) -> pathlib.Path:
    """Return the unpacked source, and complete the record with what only the source can tell."""
    source = record["source"]
    identity = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:12]
    # Source and builds lie side by side under names that do not tell versions apart: ccache then finds the files that
    # two versions have in common.
    tree = pathlib.Path(job["work"]) / f"tree-{identity}" / "source"
    if not _is_tree(tree):
        shutil.rmtree(tree, ignore_errors=True)
        tree.parent.mkdir(parents=True, exist_ok=True)
        if source["kind"] == "git":
            _fetch_git(source, tree, log, lock)
        elif source["kind"] == "sdist":
            _unpack(_fetch_sdist(source, job, log, lock), tree, log, lock)
        else:
            _unpack(_fetch_archive(source, job, log), tree, log, lock)
    if source["kind"] == "git":
        argv = ["git", "-C", str(tree), "rev-parse", "HEAD"]
        head = subprocess.run(argv, capture_output=True, text=True, check=False)
        if head.returncode != 0:
            raise Failure(f"git does not know which commit {tree} is; remove {tree.parent} and run the play again.")
        record["commit"] = head.stdout.strip()[:9]
    return tree


def _without_network() -> list[str]:
    """Return what to put in front of a command so that it has no network, or nothing where that is not allowed."""
    try:
        allowed = subprocess.run(["unshare", "--net", "--", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        allowed = False
    return ["unshare", "--net", "--"] if allowed else []


def _compile(job: dict[str, t.Any], record: dict[str, t.Any], log: Log, lock: Lock) -> pathlib.Path:
    """Configure and compile, going on where a broken-off build ended; return the directory with the programs."""
    tree = _source_tree(job, record, log, lock)
    build = tree.parent / f"build-{job['directory']}"
    arguments = [*record["cmake_arguments"], f"-DLLAMA_BUILD_NUMBER={record['build']}"]
    arguments += [f"-DLLAMA_BUILD_COMMIT={record['commit'] or 'unknown'}"]
    env = {
        "CCACHE_DIR": job["ccache_dir"],
        "CCACHE_BASEDIR": str(tree.parent),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_SLOPPINESS": "pch_defines,time_macros",
        "NINJA_STATUS": "[%f/%t %p] ",
    }
    if "native" in record["toolchain"]:
        # ccache hashes the words -march=native and not what they mean here; a cache that moves to, or is shared with,
        # another CPU would hand out code that does not run
        env["CCACHE_NAMESPACE"] = record["toolchain"]["native"][:12]
    pathlib.Path(job["ccache_dir"]).mkdir(parents=True, exist_ok=True)
    prefix = _without_network()
    log.say("building without a network" if prefix else "this host cannot take the network away from a build; going on")
    what = f"configuring llama.cpp {record['version']} ({record['name']})"
    try:
        _run([*prefix, "cmake", "-S", str(tree), "-B", str(build), "-G", "Ninja", *arguments], log, lock, what, env)
    except Failure:
        # what a failed configuration leaves behind can make the next one fail too
        shutil.rmtree(build, ignore_errors=True)
        raise
    jobs = _jobs(job)
    what = f"compiling llama.cpp {record['version']} ({record['name']})"
    log.say(f"targets: {', '.join(record['targets'])}; {jobs} compilers at a time")
    _run([*prefix, "ninja", "-C", str(build), f"-j{jobs}", *record["targets"]], log, lock, what, env)
    return build / "bin"


def _link_packages(record: dict[str, t.Any], stage: pathlib.Path, log: Log) -> None:
    """Fill the stage with links to the programs that packages installed."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/bin", "/usr/bin", "/usr/sbin"])
    stage.mkdir(parents=True)
    for target in record["targets"]:
        hidden = [f for place in _HIDDEN_PROGRAM_DIRS for f in sorted(pathlib.Path("/").glob(f"{place}/{target}"))]
        program = shutil.which(target, path=path) or next((str(f) for f in hidden if os.access(f, os.X_OK)), None)
        if program is None:
            raise Failure(
                f"no installed package brought the program {target}; add its package to llama_cpp_packages, "
                "or remove it from llama_cpp_targets."
            )
        (stage / target).symlink_to(os.path.realpath(program))
        log.say(f"{target} is {program}")


def _ask(program: pathlib.Path, option: str) -> tuple[int, str]:
    """Return exit status and output, errors first, of a program called with one option."""
    done = subprocess.run([str(program), option], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode, (done.stderr + done.stdout).decode("utf-8", errors="replace")


def _say_version(program: pathlib.Path) -> tuple[int, str | None]:
    """Return build number and commit as the program states them, or (0, None)."""
    said = _VERSION.search(_ask(program, "--version")[1])
    if not said:
        return 0, None
    return int(said.group(1) or said.group(3)), said.group(2) or said.group(4)


def _try_programs(stage: pathlib.Path, targets: list[str], log: Log) -> None:
    """Run every program once from where it is. Raises Failure with what the loader said."""
    for target in targets:
        program = stage / target
        if not program.exists():
            raise Failure(f"the target {target} made no program {target}; correct llama_cpp_targets.")
        status, output = _ask(program, "--help")
        if status != 0:
            lines = [line for line in output.splitlines() if line.strip()]
            reason = lines[0] if lines else f"exit status {status}"
            if status == -signal.SIGILL:
                reason = "it uses instructions that this CPU does not have"
            if "libcuda.so" in reason:
                reason += " (the NVIDIA driver brings it: run the role nvidia_driver first)"
            raise Failure(f"{target} was built but does not run: {reason[:300]}.")
        log.say(f"{target} runs")


def _publish(stage: pathlib.Path, final: pathlib.Path) -> None:
    """Make a complete build appear under its name."""
    if final.exists():
        # It has no build.json: somebody damaged it, since nothing incomplete is ever put there.
        broken = final.with_name(f".broken-{final.name}-{os.getpid()}")
        os.rename(final, broken)
        os.rename(stage, final)
        shutil.rmtree(broken, ignore_errors=True)
    else:
        os.rename(stage, final)


def build(job: dict[str, t.Any], log: Log, lock: Lock) -> bool:
    """Build and publish `directory`; return whether there was anything to do."""
    prefix, work, record = pathlib.Path(job["prefix"]), pathlib.Path(job["work"]), dict(job["record"])
    final = prefix / job["directory"]
    if (final / "build.json").exists():
        log.say(f"{final} is there already")
        return False
    if record["source"]["kind"] != "package":
        check_resources(job)
    stage = work / f"stage-{job['directory']}"
    shutil.rmtree(stage, ignore_errors=True)
    if record["source"]["kind"] == "package":
        _link_packages(record, stage / "bin", log)
        programs = None
    else:
        programs = _compile(job, record, log, lock)
        shutil.copytree(programs, stage / "bin", symlinks=True)
    # The programs must not need the build directory: try them while it is out of the way.
    hidden = programs.parent.with_name(programs.parent.name + ".hidden") if programs else None
    if programs and hidden:
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(programs.parent, hidden)
    try:
        _try_programs(stage / "bin", record["targets"], log)
    finally:
        if programs and hidden:
            os.rename(hidden, programs.parent)
    if not record["build"]:
        answers = [_say_version(stage / "bin" / target) for target in record["targets"]]
        number, commit = next((answer for answer in answers if answer[0]), (0, None))
        record.update(build=number, commit=record["commit"] or commit)
    record["built_at"] = _now()
    log.say(f"publishing {final}")
    shutil.copyfile(log.path, stage / "build.log")
    (stage / "build.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in (stage, stage / "bin"):
        path.chmod(0o755)
    for name in ("build.log", "build.json"):
        (stage / name).chmod(0o644)
    os.sync()
    _publish(stage, final)
    if programs:
        shutil.rmtree(programs.parent, ignore_errors=True)
    return True


def _linked(prefix: pathlib.Path) -> set[str]:
    return {os.path.basename(os.path.realpath(path)) for path in prefix.iterdir() if path.is_symlink()}


def _upgrading(record: pathlib.Path) -> set[str]:
    """Return the builds that an upgrade which is under way leads from and to (docs/data_formats.md, upgrade)."""
    try:
        upgrade = json.loads(record.read_text(encoding="utf-8"))["under_way"]
        return {build for end in ("from", "to") for build in upgrade[end]["builds"].values()} if upgrade else set()
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise Failure(
            f"{record} is damaged, so it is unknown which builds an upgrade needs, and none was removed; move it away "
            f"(mv {record} {record}.old) and run the play again."
        ) from exc


def prune(job: dict[str, t.Any], log: Log) -> list[str]:
    """Remove old builds and what building left behind; return the removed builds.

    Of each named build `keep_builds` remain: the linked one, which always does, then the one that was linked before
    (in `previous`), then the newest others. Those of an upgrade that is under way remain, too.
    """
    prefix, work = pathlib.Path(job["prefix"]), pathlib.Path(job["work"])
    linked, previous = _linked(prefix) | _upgrading(pathlib.Path(job["upgrade_record"])), set(job["previous"])
    others: dict[str, list[tuple[bool, str, pathlib.Path]]] = {}
    for path in prefix.iterdir():
        if path.is_symlink() or not path.is_dir() or not _DIRECTORY.match(path.name) or path.name in linked:
            continue
        try:
            record = json.loads((path / "build.json").read_text(encoding="utf-8"))
            others.setdefault(str(record["name"]), []).append((path.name in previous, str(record["built_at"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            log.say(f"leaving {path} alone: it has no readable build.json")
    removed = []
    for builds in others.values():
        for _previous, _built_at, path in sorted(builds, reverse=True)[max(job["keep_builds"] - 1, 0) :]:
            doomed = path.with_name(f".old-{path.name}")
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
            removed.append(path.name)
            log.say(f"removed {path}")
    for path in work.iterdir():
        if path.is_dir() and path.name.startswith(("tree-", "stage-", "download-")):
            shutil.rmtree(path, ignore_errors=True)
    for path in prefix.glob(".old-*"):
        shutil.rmtree(path, ignore_errors=True)
    return removed


def main() -> int:
    action, job = sys.argv[1], json.load(sys.stdin)
    os.umask(0o022)
    try:
        if action == "check":
            check_resources(job)
            print(json.dumps({"changed": False}))
            return 0
        lock_path = pathlib.Path(job["work"]) / "lock"
        if action == "prune":
            try:
                lock = Lock(lock_path, "prune", give_way=True)
            except LookupError:
                # whoever builds needs what is there, and prunes when it has finished
                print(json.dumps({"changed": False, "removed": []}))
                return 0
            removed = prune(job, Log(pathlib.Path(job["log"])))
            print(json.dumps({"changed": bool(removed), "removed": removed}))
        else:
            lock = Lock(lock_path, job["directory"])
            print(json.dumps({"changed": build(job, Log(pathlib.Path(job["log"])), lock)}))
    except Failure as exc:
        print(exc, file=sys.stderr)
        return 1
    except OSError as exc:
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else (exc.strerror or exc)
        print(f"building llama.cpp failed: {reason}; correct that and run the play again.", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
