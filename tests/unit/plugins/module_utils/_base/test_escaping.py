# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""tests/unit/playbooks/test_unit_values.py has systemd itself read what is written here."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import escaping
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [
        ("-ts", "argument", "-ts"),
        ("20,13", "argument", "20,13"),
        (7, "argument", "7"),
        ("", "argument", '""'),
        ("/srv/my models/x.gguf", "argument", '"/srv/my models/x.gguf"'),
        ("/srv/100%/x.gguf", "argument", "/srv/100%%/x.gguf"),
        ("$HOME", "argument", "$$HOME"),
        ("$HOME", "assignment", "$HOME"),
        ('a"b\\c', "argument", '"a\\"b\\\\c"'),
        ("a\n\tb", "argument", '"a\\n\\tb"'),
        (";", "argument", '";"'),
        ("100% of it", "text", "100%% of it"),
        ("dev-a\\x2db.device", "word", "dev-a\\x2db.device"),
        ("https://h/a?b=c&d", "ini", "https://h/a?b=c&d"),
        ("a $b %c", "udev", "a $$b %%c"),
    ],
)
def test_a_value_is_written_for_its_place(value, form, written):
    assert escaping.escaped(value, form, "x") == written


@pytest.mark.parametrize(
    ("value", "form"),
    [
        *((f"a{character}b", form) for form in escaping.FORMS for character in "\0\r\x1b\x7f\x85\u2028\u202e\ud800"),
        *((f"a{character}b", form) for form in ("text", "word", "ini", "udev") for character in "\n\t"),
        ("a\\", "text"), ("a\\ ", "text"), ("a b", "word"), ("", "word"), ("a\\", "word"), ("a%i", "word"),
        (" a", "ini"), ("a ; b", "ini"), ("#", "ini"), ('a"', "udev"), ("a\\", "udev"),
    ],
)  # fmt: skip
def test_what_a_place_cannot_hold_is_refused_by_the_name(value, form):
    with pytest.raises(UserError, match="^some_variable ") as caught:
        escaping.escaped(value, form, "some_variable")
    assert escaping.control_character(str(caught.value), "") is None


@pytest.mark.parametrize("variable", ["", "1A", "A B", "A=B", "A\n", "Ä"])
def test_what_is_no_name_of_a_variable_is_refused(variable):
    assert escaping.assignment("A_1", "a b", "x") == '"A_1=a b"'
    with pytest.raises(UserError, match="^some_variable sets the variable"):
        escaping.assignment(variable, "1", "some_variable")


def test_an_unknown_form_is_a_mistake_of_the_template():
    with pytest.raises(ValueError, match="yaml is no form of escaping"):
        escaping.escaped("a", "yaml", "x")
