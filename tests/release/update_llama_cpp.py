"""update_llama_cpp.py [VERSION] [BUILD_NUMBER]: move the pin of llama.cpp to a source distribution of llama-cpp-python.

Without a version, or with `newest`: the newest that the package index of pip's configuration has. Both builds are made
by the role llama_cpp on a test host, which checks the flags that other roles need; the tables of formats are compared
with the new source, and the tests marked live run on the new programs. The pin moves when all of that passed.
What changed is in build/llama-cpp/changes.md.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import typing as t

import requests
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import package_index
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.tests.release import llama_cpp_pin
from ansible_collections.homelab.mixed_gpu.tests.release.llama_cpp_pin import ROOT, Pin, PinError

WORK: t.Final = ROOT / "build/llama-cpp"
CACHE: t.Final = pathlib.Path(os.environ.get("MIXED_GPU_CACHE") or pathlib.Path.home() / ".cache/homelab-mixed-gpu")
HOST: t.Final = "mixed-gpu-update-llama-cpp"
ENGINE: t.Final = os.environ.get("LAB_ENGINE", "podman")
#: Where the collection and its tests are on the test host.
HOME: t.Final = "/opt/controller"
#: What the tests marked live import.
PACKAGES: t.Final = ("ansible-core", "pytest", "hypothesis", "gguf", "numpy")
FORMATS: t.Final = "tests/unit/plugins/module_utils/_models/test_tensor_types.py"
QUICK: t.Final = "plugins/module_utils/_llama_cpp/quick_compile.py"


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"update-llama-cpp | {text}", flush=True)


def index() -> tuple[package_index.Settings, dict[str, str], requests.Response]:
    """Return pip's settings, and of the first index that has any: its source distributions, and its page."""
    own = package_index.own_index([sys.executable])
    settings = package_index.settings(package_index.configuration_texts(os.environ), os.environ, own)
    reasons = []
    for url in package_index.pages(settings, "llama-cpp-python"):
        if not url.startswith("http"):
            continue
        try:
            answer = get(settings, url, {"Accept": package_index.ACCEPT})
        except requests.RequestException as exc:
            reasons.append(f"{package_index.without_password(url)}: {type(exc).__name__}")
            continue
        if found := llama_cpp_pin.offered(answer.text):
            return settings, found, answer
        reasons.append(f"{package_index.without_password(url)}: none is there")
    told = "; ".join(reasons) or "none is configured"
    raise PinError(f"no package index has a source distribution of llama-cpp-python ({told}): see pip config debug.")


def get(settings: package_index.Settings, url: str, headers: t.Mapping[str, str]) -> requests.Response:
    """Return the answer of a server. Raises requests.RequestException for any other status than success."""
    verify: str | bool = False if settings.trusts(url) else settings.certificate or True
    proxies = {"http": settings.proxy, "https": settings.proxy} if settings.proxy else None
    answer = requests.get(url, headers=headers, timeout=120, verify=verify, proxies=proxies)
    answer.raise_for_status()
    return answer


def download(
    version: str, settings: package_index.Settings, page: requests.Response, sha256: str
) -> pathlib.Path:
    """Return the source distribution, downloaded where the cache lacks it, with the hash that the index states."""
    name = f"llama_cpp_python-{version}.tar.gz"
    file = CACHE / "downloads" / name
    if not file.is_file() or (sha256 and hash_of(file) != sha256):
        url = package_index.link(page.text, page.url, name)
        assert url is not None  # it is on the page
        say(f"downloading {name}")
        content = get(settings, url, {}).content
        found = hashlib.sha256(content).hexdigest()
        if sha256 not in ("", found):
            raise PinError(f"{name} has the SHA-256 {found}, and the index says {sha256}: do not trust this file.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return file


def hash_of(file: pathlib.Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def wanted(version: str, number: str, old: Pin) -> tuple[Pin, pathlib.Path]:
    """Return the pin of a version, read from its source, and its archive."""
    settings, versions, page = index()
    newest = list(versions)[-1]
    version = newest if version in ("", "newest") else version
    if version not in versions:
        raise PinError(f"the index has no source distribution of llama-cpp-python {version}; the newest is {newest}.")
    say(f"llama-cpp-python {version} of {len(versions)}, newest {newest}; pinned is {old.version}")
    archive = download(version, settings, page, versions[version])
    commit = llama_cpp_pin.commit_of(archive)
    if number and llama_cpp_pin.is_commit(commit):
        return Pin(version, hash_of(archive), int(number), commit), archive
    if old.commit.startswith(commit):
        return Pin(version, hash_of(archive), old.build, old.commit), archive
    build, commit = tagged(commit)
    return Pin(version, hash_of(archive), int(number or build), commit), archive


def tagged(commit: str) -> tuple[int, str]:
    """Return build number and full commit, asked of the repository that llama_cpp_git_url names."""
    url = llama_cpp_pin.defaults(ROOT)["llama_cpp_git_url"]
    asked = subprocess.run(["git", "ls-remote", "--tags", url], capture_output=True, text=True, check=False)
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PinError(
            f"the build number of {commit[:9]} is a tag of {url}, which cannot be asked ({said}): look the tag up and "
            "give BUILD_NUMBER."
        )
    return llama_cpp_pin.number_of(commit, asked.stdout)


def lab(*command: str, quiet: bool = False) -> str:
    """Run tests/lab/lab.sh; return what it printed. Raises PinError where it fails."""
    variables = {
        **os.environ, "LAB_HOST": HOST, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "NO_COLOR": "1",
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"), "ANSIBLE_HOME": str(ROOT / ".ansible"),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        ["tests/lab/lab.sh", *command], cwd=ROOT, env=variables, text=True, check=False, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None, stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    if done.returncode:
        raise PinError(
            f"lab.sh {' '.join(command)[:200]} failed, so nothing moved: {(done.stdout or 'see above')[-3000:]}"
        )
    return done.stdout or ""


def inside(command: str, quiet: bool = True) -> str:
    """Run a shell command on the test host; return what it printed."""
    return lab("run", ENGINE, "exec", HOST, "sh", "-c", command, quiet=quiet)


def build(pin: Pin) -> tuple[dict[str, str], bool]:
    """Have the role build a source, which checks its flags; return the --help of its programs, and whether it was
    compiled as on test hosts.

    Those compile many files as one (llama_cpp_quick_compile), where names of two files may clash. Owners do not.
    """
    say(f"building b{pin.build} ({pin.commit[:9]}); the role checks the flags that other roles need")
    quick = True
    try:
        run_role(pin, quick)
    except PinError:
        quick = False
        say("that failed as test hosts compile (llama_cpp_quick_compile); building it as owners do")
        run_role(pin, quick)
    programs = llama_cpp_pin.defaults(ROOT)["llama_cpp_targets"]
    return {program: inside(f"/opt/llama.cpp/current/bin/{program} --help 2>&1") for program in programs}, quick


def run_role(pin: Pin, quick: bool) -> None:
    """Run the role llama_cpp on the test host. Raises PinError where it fails."""
    variables = WORK / f"{pin.version}.json"
    variables.write_text(json.dumps({**pin.variables(), "llama_cpp_quick_compile": quick}), encoding="utf-8")
    options = ["-i", "inventories/sandbox", "-e", f"@{variables}", "tests/release/one_build.yml"]
    lab("run", "python", "-m", "ansible", "playbook", *options)


def formats_hold(archive: pathlib.Path) -> bool:
    """Return whether the tables of tensor types, file types and architectures are those of the new source."""
    say("comparing the tables of formats with the source")
    shutil.rmtree(WORK / "source", ignore_errors=True)
    with tarfile.open(archive) as members:
        members.extractall(WORK / "source", filter="data", members=llama_cpp_pin.tree(members))
    (tree,) = (WORK / "source").glob("*/vendor/llama.cpp")
    variables = {**os.environ, "MIXED_GPU_LLAMA_SOURCE": str(tree)}
    return not subprocess.run([sys.executable, "-m", "pytest", "-q", FORMATS], cwd=ROOT, env=variables).returncode


def run_live_tests() -> None:
    """Run the tests marked live on the programs that the test host uses now."""
    say("running the live tests on the new programs")
    collection = f"{HOME}/ansible_collections/homelab/mixed_gpu"
    packages = " ".join(f"{name}=={importlib.metadata.version(name)}" for name in PACKAGES)
    inside(f"rm -rf {HOME} && mkdir -p {collection} && /opt/mixed_gpu/venv/bin/python -m venv {HOME}/venv")
    inside(f"{HOME}/venv/bin/pip install -q --disable-pip-version-check {packages}")
    for name in ("plugins", "roles", "meta", "tests", "galaxy.yml", "LICENSE", "pyproject.toml"):
        lab("run", ENGINE, "cp", str(ROOT / name), f"{HOST}:{collection}/{name}", quiet=True)
    inside(
        f"cd {collection} && LC_ALL=C.UTF-8 PYTHONPATH={HOME} MIXED_GPU_LLAMA_BIN=/opt/llama.cpp/current/bin"
        f" {HOME}/venv/bin/python -m pytest -q -m 'live and not link' $(grep -rlE 'mark[.]live' tests/unit)",
        quiet=False,
    )


def main(arguments: t.Sequence[str]) -> None:
    """Check everything, then move the pin."""
    version, number = (*arguments, "", "")[:2]
    old = llama_cpp_pin.pinned(ROOT)
    new, archive = wanted(version, number, old)
    say(f"it holds {new.commit[:9]}, build {new.build}; SHA-256 {new.sha256}")
    if new == old:
        say("that is the pin: hash, commit and build number agree, and nothing moves")
        return
    WORK.mkdir(parents=True, exist_ok=True)
    formats = formats_hold(archive)
    lab("create", HOST)
    before, _quick = build(old)
    after, quick = build(new)
    lines = [f"# llama.cpp b{old.build} to b{new.build} ({old.version} to {new.version})", ""]
    lines += llama_cpp_pin.differences(before, after)
    (WORK / "changes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), flush=True)
    run_live_tests()
    differs = {f"the tables of formats ({FORMATS})": formats, f"what test hosts compile as one ({QUICK})": quick}
    if wrong := [name for name, holds in differs.items() if not holds]:
        raise PinError(f"nothing moved: for the new source correct {' and '.join(wrong)}, and run this again.")
    llama_cpp_pin.move(ROOT, old, new)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = llama_cpp_pin.still_named(ROOT, tracked.splitlines(), old)
    lines += [
        "",
        f"Read or recorded of b{old.build}; look whether it still holds:",
        "",
        *(f"- {name}" for name in named),
    ]
    (WORK / "changes.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lab("destroy", HOST)
    say(f"the pin moved in {len(llama_cpp_pin.PLACES)} files; {len(named)} others name the old build: "
        "build/llama-cpp/changes.md. Next: make test upgrade-test")  # fmt: skip


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (PinError, UserError, requests.RequestException) as reason:
        sys.exit(f"update-llama-cpp: {reason}")
