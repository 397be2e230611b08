"""Forms as clients write them come apart byte for byte; anything else is refused in a sentence."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.files.multipart import MOST_PARTS, Part, parse_form


def written(data: dict[str, str], files: dict[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """A form as httpx writes it, which the openai client uses."""
    request = httpx.Request("POST", "http://a", data=data, files=files)
    return request.read(), request.headers["content-type"]


@given(
    st.binary(max_size=300), st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=20)
)
def test_a_file_comes_out_as_it_went_in(data: bytes, name: str):
    purpose, file = parse_form(*written({"purpose": "vision"}, {"file": (name or "a", data)}))
    assert purpose == Part("purpose", None, b"vision")
    assert (file.name, file.data) == ("file", data)


def test_bytes_that_look_like_lines_and_boundaries_stay_in_the_file():
    data = b"\r\n--x\r\n\r\n\n\r--\x00\xff--boundary--\r\n"
    body = (
        b'--"b\r\n'
        b'ignored\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="a \\"b\\".png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--b--\r\nepilogue"
    )
    assert parse_form(body, "multipart/form-data; boundary=b") == [Part("file", 'a "b".png', data)]


GOOD = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (GOOD + b"--b--", "multipart/form-data", "no boundary"),
        (GOOD + b"--b--", "multipart/form-data; boundary=" + "b" * 71, "no boundary"),
        (GOOD + b"--b--", "multipart/form-data; boundary=ä", "no boundary"),
        (GOOD, "multipart/form-data; boundary=b", "does not end"),
        (b"", "multipart/form-data; boundary=b", "does not end"),
        (GOOD * (MOST_PARTS + 3) + b"--b--", "multipart/form-data; boundary=b", "fields"),
        (b"--b\r\nx\r\n--b--", "multipart/form-data; boundary=b", "header"),
        (b"--b\r\na: " + b"x" * 9000 + b"\r\n\r\n\r\n--b--", "multipart/form-data; boundary=b", "header"),
        (b"--b\r\na: b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", "no name"),
    ],
)
def test_what_is_no_form_is_refused(body: bytes, kind: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse_form(body, kind)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_form_or_refused(noise: bytes):
    for body in (noise, GOOD[:-1] + noise, b"--b\r\n" + noise + b"\r\n--b--"):
        try:
            parts = parse_form(body, "multipart/form-data; boundary=b")
        except ValueError:
            continue
        assert all(part.name is not None for part in parts)
