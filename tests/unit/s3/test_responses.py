"""Responses of an S3 service: the message of an error."""

import pytest

from dockyard.s3.responses import MAX_MESSAGE_CHARS, error_message

SECRET = "se/cret+key"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<Error><Message>Access Denied.</Message></Error>", "Access Denied."),
        ("<Message>\n  two\r\n\tlines\x00 </Message>", "two lines"),
        ("<Message>a &lt; b &amp; c</Message>", "a < b & c"),
        ("<Message></Message>", ""),
        ("<html>no message</html>", ""),
        ("", ""),
        (f"<Message>the key {SECRET} is wrong</Message>", "the key *** is wrong"),
        ("<Message>the key se%2Fcret%2Bkey is wrong</Message>", "the key *** is wrong"),
        ("<Message>?X-Amz-Signature=0a1b&amp;x=1 Signature=0a1b</Message>", "?X-Amz-Signature=***&x=1 Signature=***"),
        ("<Message>X-Amz-Security-Token=abc</Message>", "X-Amz-Security-Token=***"),
    ],
)
def test_the_message_is_one_line_without_secrets(body: str, message: str) -> None:
    """What the service says, without what it repeats of the request."""
    assert error_message(body.encode(), [SECRET, None, ""]) == message


@pytest.mark.parametrize("length", [MAX_MESSAGE_CHARS, MAX_MESSAGE_CHARS + 1, 2**20])
def test_a_long_message_is_cut(length: int) -> None:
    """However long it is, also without its end tag."""
    message = error_message(b"<Message>" + b"x" * length, [])
    assert message == "x" * MAX_MESSAGE_CHARS + "..." * (length > MAX_MESSAGE_CHARS)
