"""Commands in the test's own process."""

from segray import cli


def run(monkeypatch, capsys, *args):
    """(exit code, stdout, stderr) of the command, in this process."""
    monkeypatch.setattr("sys.argv", ["segray", *map(str, args)])
    try:
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    return (code, *capsys.readouterr())
