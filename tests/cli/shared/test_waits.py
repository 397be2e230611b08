"""Lines that say what is waited for."""

from __future__ import annotations

import time

import pytest

from pipelines.waits import announced


def test_what_takes_long_is_named_again_and_again(capsys: pytest.CaptureFixture[str]):
    with announced("Waiting for Ray", first_s=0.02, every_s=0.02):
        time.sleep(0.5)
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) >= 2
    assert err.startswith("Waiting for Ray, after 0 s …")


def test_what_is_quick_is_silent_and_nothing_is_said_after_an_error(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="a mistake"), announced("Waiting", first_s=0.2):
        raise ValueError("a mistake")
    time.sleep(0.3)
    assert capsys.readouterr() == ("", "")
