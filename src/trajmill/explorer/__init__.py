"""The explorer: a web page, served from this machine, to look through the trajectories of a dataset.

index.py    a row for each trajectory, made once and kept in the user's cache
query.py    what the page asks the index for
reading.py  one trajectory out of the dataset's files, as JSON and as files to download
guard.py    who may ask what
app.py      the addresses of the page
server.py   the server, from start to Ctrl-C
static/     the page itself; `vendor` holds two libraries, as published
"""

from __future__ import annotations

from trajmill.errors import TrajmillError


class ExploreError(TrajmillError):
    """The page cannot be served as asked."""
