"""The generator command: what it writes it finds unchanged, and any other byte makes --check fail by name."""

import pytest

from common.errors import ConfigError
from tasks.bundled import write_or_check
from tasks.practice import instruct

ROWS = {"one": [{"id": 1, "text": "ä"}], "two": [{"id": 2}, {"id": 3}]}


@pytest.fixture
def run(tmp_path, capsys):
    files = {name: tmp_path / "deep" / f"{name}.jsonl" for name in ROWS}

    def run(*argv):
        code = write_or_check("tasks.some.generate", "some rows", lambda: ROWS, files, list(argv))
        return code, capsys.readouterr().out

    run.files = files
    return run


def test_what_was_written_passes_the_check(run):
    assert run() == (0, "one.jsonl: 1 rows\ntwo.jsonl: 2 rows\n")
    assert run.files["one"].read_bytes() == '{"id": 1, "text": "ä"}\n'.encode()
    assert run("--check") == (0, "as generated: some rows\n")


def test_a_changed_and_a_missing_file_are_named_and_not_mended(run):
    run()
    run.files["one"].write_bytes(run.files["one"].read_bytes() + b"\n")
    run.files["two"].unlink()
    assert run("--check") == (1, "differs from the generator: one.jsonl, two.jsonl\n")
    assert not run.files["two"].exists()


def test_the_instruct_form_names_a_folder_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out .*file/x: .*; give a folder"):
        instruct.main(["--out", str(tmp_path / "file" / "x")])
