from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import llama_cpp_build

WANTED = {
    "name": "main",
    "source": {"kind": "git", "url": "https://example.com/llama.cpp.git", "version": "b11312"},
    "backends": ["cpu", "rpc"],
    "native": False,
    "cuda_root": "/usr/local/cuda",
    "cuda_architectures": [],
    "cmake_options": {},
    "targets": ["llama-bench"],
    "toolchain": {"c": "cc 14", "cxx": "c++ 14"},
}


def test_returns_the_plan():
    planned = llama_cpp_build.FilterModule().filters()["llama_cpp_build"](WANTED)
    assert set(planned) == {"name", "key", "directory", "cmake_arguments", "record"}
    assert planned["directory"] == f"b11312-{planned['key'][:12]}"


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({**WANTED, "backends": ["metal"]}, "llama.cpp cannot be built as asked: the backend metal is unknown"),
        ({**WANTED, "colour": "red"}, "unexpected keyword argument 'colour'"),
        ({key: value for key, value in WANTED.items() if key != "targets"}, "missing 1 required .* 'targets'"),
        ({**WANTED, "toolchain": {"c": "cc 14"}}, "the key 'cxx' is missing"),
    ],
)
def test_says_what_is_wrong(wanted, sentence):
    with pytest.raises(AnsibleFilterError, match=sentence):
        llama_cpp_build.llama_cpp_build(wanted)
