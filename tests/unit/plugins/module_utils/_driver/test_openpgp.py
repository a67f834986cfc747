# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import base64
import pathlib
import shutil
import subprocess

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import openpgp_fingerprints
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import openpgp

KEYRINGS = sorted(pathlib.Path("/usr/share/keyrings").glob("debian-archive-*.[ga][ps][gc]")) + sorted(
    pathlib.Path("/usr/share/keyrings").glob("ubuntu-archive-*.gpg")
)
GPG = shutil.which("gpg")


def by_gpg(path, home):
    command = [GPG, "--homedir", str(home), "--show-keys", "--with-colons", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found, primary = [], False
    for fields in (line.split(":") for line in lines):
        if fields[0] in ("pub", "sub"):
            primary = fields[0] == "pub"
        elif fields[0] == "fpr" and primary:
            found.append(fields[9])
    assert found
    return found


@pytest.mark.skipif(not KEYRINGS or GPG is None, reason="needs gpg and a distribution's keyrings to compare with")
@pytest.mark.parametrize("path", KEYRINGS, ids=lambda path: path.name)
def test_fingerprints_are_those_that_gpg_prints(path, tmp_path):
    tmp_path.chmod(0o700)
    assert openpgp.fingerprints(path.read_bytes()) == by_gpg(path, tmp_path)


@pytest.mark.skipif(GPG is None, reason="needs gpg to make a key")
def test_armored_and_binary_are_the_same_key(tmp_path):
    tmp_path.chmod(0o700)
    base = [GPG, "--homedir", str(tmp_path), "--batch"]
    generate = [*base, "--passphrase", "", "--quick-gen-key", "somebody@example.org", "rsa2048", "sign", "never"]
    subprocess.run(generate, check=True, capture_output=True)
    armored = subprocess.run([*base, "--armor", "--export"], check=True, capture_output=True).stdout
    binary = subprocess.run([*base, "--export"], check=True, capture_output=True).stdout
    (tmp_path / "key").write_bytes(binary)
    expected = by_gpg(tmp_path / "key", tmp_path)
    assert openpgp.fingerprints(armored) == openpgp.fingerprints(binary) == expected
    assert openpgp_fingerprints.openpgp_fingerprints(base64.b64encode(armored).decode()) == expected
    # a second key in the file is seen, so that it cannot be slipped in
    assert len(openpgp.fingerprints(binary + binary)) == 2
    with pytest.raises(openpgp.OpenPGPError, match="middle of a packet"):
        openpgp.fingerprints(binary[:200])


BROKEN = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!\n-----END PGP PUBLIC KEY BLOCK-----"


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xc0", BROKEN])
def test_what_is_no_key(data):
    with pytest.raises(AnsibleFilterError, match="cannot be read as a key"):
        openpgp_fingerprints.openpgp_fingerprints(base64.b64encode(data).decode())
