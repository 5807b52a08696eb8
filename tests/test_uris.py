import pytest

from trajmill.uris import without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/x", "https://host/x"),
        ("https://u:p@host/x", "https://host/x"),
        ("https://u@host:80/x?q=a@b", "https://host:80/x?q=a@b"),
        ("https://u:p@host/x?q=a@b", "https://host/x?q=a@b"),
        ("https://:token@host", "https://host"),
        ("sftp://u:p@w@host/x", "sftp://host/x"),
        ("sftp://u:p/w@host/x", "sftp://host/x"),
        ("sftp://u:p/w@v@host/x", "sftp://host/x"),
        ("sftp://u:p@w/v@host/x", "sftp://host/x"),
        ("sftp://u:p?w@host/x", "sftp://host/x"),
        ("sftp://u:p#w@host/x", "sftp://host/x"),
        ("sftp://u:p%40w@host/x", "sftp://host/x"),
        ("http://u:p@[::1]:80/x", "http://[::1]:80/x"),
        ("http://[::1]:80/x@y", "http://[::1]:80/x@y"),
        ("http://host:80/x@y", "http://host:80/x@y"),
        ("hf://datasets/me/x@main/f", "hf://datasets/me/x@main/f"),
        ("simplecache::s3://u:p@b/x", "simplecache::s3://b/x"),
        ("file:///a/b@c", "file:///a/b@c"),
        ("C:/a@b and me@there", "C:/a@b and me@there"),
        ("a https://u:p@h/x, then (ftp://v:q/r@g/y)", "a https://h/x, then (ftp://g/y)"),
        ("https://u:p@a/x,https://v:q@b/y", "https://a/x,https://b/y"),
    ],
)
def test_without_password(text, shown):
    assert without_password(text) == shown
    assert without_password(shown) == shown
