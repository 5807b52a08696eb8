"""What a build says where there is no terminal."""

from trajmill import report


def test_preparing_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(report, "PLAIN_EVERY", 0)
    with report.BuildProgress() as progress:
        progress.preparing("oqmd", 0, 0)  # nothing is known yet
        progress.preparing("oqmd", 1, 4)
        progress.preparing("oqmd", 4, 4)
    said = capsys.readouterr()
    assert said.err.splitlines() == ["preparing oqmd: 25%", "preparing oqmd: 100%"]
    assert said.out == ""
