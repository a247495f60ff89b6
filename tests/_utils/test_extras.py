"""What an extra brings: the module, or one line that says how to install it."""

import json
import sys

import pytest

from progdist import UserError
from progdist._utils.extras import import_extra


def test_a_module_or_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert import_extra("json", "text", "a model") is json
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(UserError, match=r"^a model needs the extra `text`: pip install 'progdist\[text\]'$"):
        import_extra("json", "text", "a model")
