"""Mistakes are told in one line."""

import pickle

from progdist import UserError


def test_what_a_message_quotes_becomes_one_line() -> None:
    error = UserError("a  b.npz cannot be read (large.\r\n  To allow it,\n\tadjust\u2028it): remove it")
    assert str(error) == "a  b.npz cannot be read (large. To allow it, adjust it): remove it"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
