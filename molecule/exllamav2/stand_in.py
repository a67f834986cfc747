"""Make what stands in for cards, engine, server and model.

DIRECTORY/host.tar is for the test host, the rest of DIRECTORY for the controller.

The engines are wheels named exllamav2 and exllamav3 that have the modules which the unit tests use, and one of a
PyTorch for them. The hub has models of 12 blocks in EXL2's and EXL3's form, with weights that mean nothing. The server
is a repository with two commits whose main.py has TabbyAPI's manners: it reads config.yml and api_tokens.yml from the
directory that it runs in, prints the keys into its log and opens a log file, and answers with the key only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
# never to be mistaken for the real one
VERSIONS = {"exllamav2": "0.3.2+stand.in", "exllamav3": "1.6.5+stand.in", "torch": "2.11.0+cu130.stand.in"}
PACKAGES = PROJECT / "tests/unit/fixtures_bench/exllama"
UNIT = "[Unit]\nDescription=Stand-in\n[Service]\n{}\n[Install]\nWantedBy=multi-user.target\n"
# llama_server tests the record of llama.cpp; this is one of a split for the other engine
ENTRY = {
    "model": {"id": "tiny-exl2", "path": "/tiny-exl2", "sha256": None},
    "serving": {"engine": "exllamav2", "context_size": 4096, "cache_mode": "FP16"},
    "environment": {},
    "devices": [{"id": card, "device": "CUDA0", "backend": "CUDA"} for card in (FAST, SLOW)],
    "placement": [{"id": FAST, "layers": 7}, {"id": SLOW, "layers": 6}],
    "split_mode": "layer",
    "rpc_endpoints": [],
    "decision": {},
    "fingerprint": "0",
    "fingerprint_parts": {"tests": []},
    "campaign": "none",
    "gpu_split_gb": [20.5, 17.25],
    "tensor_parallel": "",
}
FACT = json.dumps({"schema": 3, "active": None, "models": {"tuned": ENTRY}})


def wheel(name: str, module: str) -> bytes:
    """Return the wheel of a package that stands in, with the text of its module."""
    info = f"{name}-{VERSIONS[name]}.dist-info"
    files = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSIONS[name]}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name.startswith("exllama"):
        files[f"{name}_ext.py"] = ""
    record = f"{info}/RECORD"
    files[record] = "".join(f"{file},,\n" for file in [*files, record])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return packed.getvalue()


def wheel_name(name: str) -> str:
    """Return the file name of a package's wheel."""
    return f"{name}-{VERSIONS[name]}-py3-none-any.whl"


def requirements(wheels: dict[str, bytes], engine: str) -> str:
    """Return the pinned set of an engine: what stands in, and what the role pins and they import."""
    pinned = (PROJECT / "roles/exllamav2/files/requirements_v2.txt").read_text(encoding="utf-8")
    # NumPy more than once, for Pythons of different age
    real = re.findall(r"^(?:loguru|numpy)==.*(?:\n    --hash.*)+", pinned, re.MULTILINE)
    own = [
        f"{name}=={VERSIONS[name]} --hash=sha256:{hashlib.sha256(content).hexdigest()}"
        for name, content in wheels.items()
        if name in (engine, "torch")
    ]
    return "\n".join(["--find-links /srv/wheels", *own, *real, ""])


def hub(directory: pathlib.Path) -> None:
    """Make the hub's repositories, one commit each: models of 4 bits a weight, and small ones that may draft."""
    spec = importlib.util.spec_from_file_location("exl_models", PROJECT / "tests/exl_models.py")
    exl_models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(exl_models)
    exl_models.write_model(
        directory / "owner/Tiny-exl2" / ("3" * 40), "exl2", blocks=12, hidden=512, forward=1408, heads=4, words=1000
    )
    (directory / "owner/Tiny-exl2/main").write_text("3" * 40, encoding="utf-8")
    for name, commit, words in (("Draft", "5" * 40, 1000), ("Stranger", "6" * 40, 2000)):
        exl_models.write_model(
            directory / f"owner/{name}-exl2" / commit, "exl2", blocks=2, hidden=128, forward=256, heads=1, kv_heads=1,
            words=words,
        )  # fmt: skip
        (directory / f"owner/{name}-exl2/main").write_text(commit, encoding="utf-8")
    # its attention divides into four parts
    exl_models.write_model(
        directory / "owner/Tiny-exl3" / ("4" * 40), "exl3", blocks=12, hidden=512, forward=1408, heads=8, kv_heads=8
    )
    (directory / "owner/Tiny-exl3/main").write_text("4" * 40, encoding="utf-8")


def repository(work: pathlib.Path, bare: pathlib.Path) -> list[str]:
    """Make the server's repository at `bare`; return its two commits."""
    identity = {
        f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env = os.environ | identity | {f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")}

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(work), *words], env=env, check=True, capture_output=True, text=True
        ).stdout

    work.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main")
    commits = []
    for number in ("1", "2"):
        (work / "main.py").write_text(
            (HERE / "server.py").read_text(encoding="utf-8").replace("NUMBER", number), encoding="utf-8"
        )
        for folder in ("templates", "sampler_overrides"):
            (work / folder).mkdir(exist_ok=True)
            (work / folder / "here").write_text("", encoding="utf-8")
        git("add", ".")
        git("commit", "--quiet", "-m", number)
        commits.append(git("rev-parse", "HEAD").strip())
    subprocess.run(["git", "clone", "--quiet", "--bare", str(work), str(bare)], check=True)
    return commits


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    subprocess.run(["rm", "-rf", str(out)], check=True)
    out.mkdir(parents=True)
    wheels = {name: wheel(name, (PACKAGES / f"{name}.py").read_text(encoding="utf-8")) for name in VERSIONS}
    for name, file in (("exllamav2", "requirements.txt"), ("exllamav3", "requirements_v3.txt")):
        (out / file).write_text(requirements(wheels, name), encoding="utf-8")
    hub(out / "hub")
    for name, commit in zip(("first", "second"), repository(out / "work", out / "tabbyapi.git"), strict=True):
        (out / name).write_text(commit, encoding="utf-8")
    subprocess.run([sys.executable, str(PROJECT / "tests/fake_nvml/build.py"), str(out)], check=True)
    profile = (PROJECT / "tests/fake_nvml/profiles/rtx4090_rtx3090.txt").read_text(encoding="utf-8")
    files = {
        "etc/fake_nvml/profile.txt": profile,
        "etc/ansible/facts.d/mixed_gpu.fact": FACT,
        "etc/systemd/system/llama-server.service": UNIT.format("ExecStart=/usr/bin/sleep infinity"),
        "etc/systemd/system/git-daemon.service": UNIT.format(
            "ExecStart=/usr/bin/git daemon --listen=127.0.0.1 --base-path=/srv/git --export-all\nUser=nobody\n"
            "Environment=GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0=*"
        ),
        "etc/systemd/system/hub.service": UNIT.format("ExecStart=/usr/bin/python3 /srv/hub.py /srv/hub --port 8099"),
        "srv/models/tiny-exl2/config.json": "{}",
        "opt/cuda-12.8/bin/nvcc": "#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\n",
    }
    with tarfile.open(out / "host.tar", "w") as tar:
        tar.add(out / "libnvidia-ml.so.1", "usr/local/lib/libnvidia-ml.so.1")
        tar.add(out / "tabbyapi.git", "srv/git/tabbyapi.git")
        tar.add(out / "hub", "srv/hub")
        tar.add(PROJECT / "tests/local_hub/server.py", "srv/hub.py")
        files |= {f"srv/wheels/{wheel_name(name)}": content for name, content in wheels.items()}
        for name, content in files.items():
            data = content if isinstance(content, bytes) else content.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755 if name.endswith("nvcc") else 0o644
            tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main()
