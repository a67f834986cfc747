"""Writes the described machine of this scenario, to be unpacked at / of the test host, into a tar file."""

from __future__ import annotations

import pathlib
import sys
import tarfile
import tempfile

PROJECT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / ".venv" / "collections"))

from ansible_collections.homelab.mixed_gpu.tests.described_hosts import build
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library

MACHINE = {
    "pci": {"0000:01:00.0": {"device": "0x2684"}, "0000:02:00.0": {"device": "0x2204"}},
    "files": {"/sys/module/nvidia/version": "580.95.05\n"},
    "nvml": "pair",
}
SLEEP = "import time\ntime.sleep(1e6)\n"
FILES = {
    "opt/vllm/bin/vllm": SLEEP,
    "opt/sglang/sglang/launch_server.py": SLEEP,
    "etc/default/vllm": "VLLM_API_KEY=sk-secretsecret\nTP=2\n",
    "etc/systemd/system/vllm.service": (
        "[Service]\nEnvironmentFile=/etc/default/vllm\n"
        "ExecStart=/usr/bin/python3 /opt/vllm/bin/vllm serve /srv/hf/llama --tensor-parallel-size ${TP}"
        " --api-key sk-secretsecret\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "opt/sglang/serve.sh": (
        "#!/bin/sh\nexport HF_TOKEN=hf_secretsecret\ncd /opt/sglang\n"
        "exec python3 -m sglang.launch_server --model-path org/coder \\\n  --tp 2 --api-key sk-secretsecret\n"
    ),
    "etc/systemd/system/sglang.service": (
        "[Service]\nExecStart=/bin/sh /opt/sglang/serve.sh\n[Install]\nWantedBy=multi-user.target\n"
    ),
    "etc/systemd/system/like.service": (
        "[Service]\nEnvironment=CUDA_VISIBLE_DEVICES=GPU-11111111-2222-3333-4444-555555555555\n"
        "ExecStart=/usr/bin/python3 /opt/vllm/bin/vllm serve small\n[Install]\nWantedBy=multi-user.target\n"
    ),
}


def main(target: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        described = root / "described"
        build.build(MACHINE, described, at=pathlib.Path("/described"))
        build.write(described / "nvml.txt", build.nvml_text(MACHINE) or "")
        (described / "lib").mkdir()
        build_library(described / "lib")
        for path, text in FILES.items():
            build.write(root / path, text)
        with tarfile.open(target, "w") as archive:
            for path in sorted(root.rglob("*")):
                if not path.is_dir() or path.is_symlink():
                    archive.add(path, path.relative_to(root), recursive=False)


if __name__ == "__main__":
    main(sys.argv[1])
