"""The form of a POST: its parts by name, and what is no form."""

import pytest

pytest.importorskip("websockets", reason="websockets is not installed (pip install 'sqap-vla-ros[serve]')")

from workers.requests import form

from sqap_vla_ros.serving.server.form import MAX_QUERY, read_form
from sqap_vla_ros.serving.server.requests import HttpError

KIND = "multipart/form-data; boundary=XX"


def part(disposition, content=b"1", more=b""):
    return b"--XX\r\nContent-Disposition: " + disposition + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def names(*disposed):
    """Return a form whose picture is b"1", by these dispositions of the picture."""
    return b"".join(map(part, disposed)) + part(b'form-data; name="json"', b"{}") + b"--XX--\r\n"


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="images"',
        b"form-data; name=images",
        b'FORM-DATA ; NAME="images"; filename="f"',
        b'form-data; filename="x; name=\\"json\\""; name="images"',
        b'form-data;\r\n name="image"',
    ],
)
def test_a_part_has_the_name_of_its_disposition(disposition):
    assert read_form(KIND, names(disposition)) == ({}, b"1")


@pytest.mark.parametrize("picture", [b"", b"\r\n", b"\r\n--XXY\r\n", b"a--XX", b"\x00\r\n\r\n\xff" * 9])
def test_contents_are_kept_to_the_byte(picture):
    assert read_form(KIND, form(picture, b'{"a": 1}')) == ({"a": 1}, picture)
    quoted = KIND.replace("XX", '"XX"')
    assert read_form(quoted, b"before\r\n" + form(picture, b"{}") + b"after") == ({}, picture)


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("multipart/form-data", form(b"", b"{}"), "names no boundary"),
        ("multipart/form-data; boundary=YY", form(b"", b"{}"), "its boundary does not occur"),
        (KIND, form(b"1", b"{}")[:-6], "was cut off"),
        (KIND, names(b'attachment; name="images"'), "lacks the part 'images'"),
        (KIND, names(b"form-data; name*=images"), "lacks the part 'images'"),
        (KIND, names(b"form-data; name=file", b"x"), "lacks the part 'images': got file, one without a name, json"),
        (
            KIND,
            names(b"form-data; name=images", b"form-data; name=images"),
            "2 parts for one picture, images, images: ",
        ),
        (KIND, names(b"form-data; name=image", b"form-data; name=images"), "2 parts for one picture, image, images: "),
        (KIND, names(b"form-data; name=images", b"form-data; name=json"), "2 parts for one JSON object, json, json: "),
        (KIND, names(*17 * (b"form-data; name=other",)), "more than 16 parts"),
        (KIND, names(*(b"form-data; name=%d" % n for n in range(20))), "more than 16 parts"),
        (KIND, b"--XX\r\nContent-Disposition: form-data; name=images\r\n--XX--\r\n", "no empty line after its headers"),
        (KIND, part(b"form-data; name=images", b"YQ==", b"Content-Transfer-Encoding: base64\r\n") + names(), "encoded"),
        (KIND, form(b"1", b"{"), "no JSON: Expecting property name enclosed in double quotes in line 1, column 2"),
        (KIND, form(b"1", b"\xff"), "no JSON: it is no text in UTF-8"),
        (KIND, form(b"1", b"[" * 60_000), "no JSON: it is nested too deeply"),
        (KIND, form(b"1", b'{"state": %s}' % (b"1" * 5_000)), "no JSON: a number in it is too long"),
        (KIND, form(b"1", b" " * (MAX_QUERY + 1)), "has 65537 bytes"),
    ],
)
def test_what_is_no_form_is_refused_in_a_sentence(kind, body, text):
    with pytest.raises(HttpError, match=text):
        read_form(kind, body)


def test_forms_within_forms_are_a_picture_like_any_bytes():
    inner = b"".join(b"--B%d\r\nContent-Type: multipart/mixed; boundary=B%d\r\n\r\n" % (n, n + 1) for n in range(2_000))
    assert read_form(KIND, form(inner, b"{}")) == ({}, inner)
