"""Locks have hashes, the page of licences is complete, and the audit cannot mistake silence for good news."""

import hashlib
import re

import pytest

from deploy import audit, licences


@pytest.mark.parametrize("lock", licences.LOCKS.values())
def test_every_locked_package_has_a_version_and_a_hash(lock):
    text = (licences.ROOT / lock).read_text()
    packages = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(packages) >= len(licences.locked(text)) > 0
    for package in packages:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==\S+", package), package[:80]
        assert "--hash=sha256:" in package, package[:80]


def test_the_page_of_licences_lists_what_is_locked():
    page = (licences.ROOT / "docs" / "licences.md").read_text()
    listed = dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \|", page, re.MULTILINE))
    for path in licences.LOCKS.values():
        for name, version in licences.locked((licences.ROOT / path).read_text()).items():
            assert version in listed.get(name, ""), f"{name} {version}: run `make docs`"


def test_files_of_others_are_as_published_and_listed_with_their_licence():
    folder, page = licences.ROOT / licences.VENDORED, (licences.ROOT / "docs" / "licences.md").read_text()
    rows = licences.vendored()
    assert {row[0] for row in rows} == {p.name for p in folder.iterdir() if p.suffix in (".js", ".css")}
    for file, package, version, licence, digest in rows:
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest, file
        assert f"| `{licences.VENDORED}/{file}` | {package} | {version} | {licence} |" in page, (
            f"{file}: run `make docs`"
        )
    assert len(list(folder.glob("*.LICENSE"))) == len({row[1] for row in rows})


def test_an_unreachable_service_is_not_a_clean_bill(capsys, tmp_path):
    """A tool that answers as if nothing were wrong with anything fails the canary; one that fails is no answer."""
    silent = tmp_path / "silent"
    silent.write_text('#!/bin/sh\necho \'{"dependencies": [{"name": "pyyaml", "version": "5.3", "vulns": []}]}\'\n')
    silent.chmod(0o755)
    assert audit.audit("x", [str(silent)])[0] == "clean"
    assert audit.audit("x", ["/bin/false"])[0] == "unreachable"
    assert audit.audit("x", [str(tmp_path / "absent")])[0] == "unreachable"
    assert audit.main(["--strict"], [str(silent)]) == 2
    assert audit.main([], [str(silent)]) == 0
    assert "not checked" in capsys.readouterr().out


def test_known_vulnerabilities_fail_and_skipped_packages_are_no_answer(tmp_path):
    for body, state in (
        ('{"name": "a", "version": "1", "vulns": [{"id": "X-1"}]}', "vulnerable"),
        ('{"name": "a", "skip_reason": "not found"}', "unreachable"),
    ):
        tool = tmp_path / state
        tool.write_text(f"#!/bin/sh\necho '{{\"dependencies\": [{body}]}}'\n")
        tool.chmod(0o755)
        assert audit.audit("x", [str(tool)])[0] == state
    assert audit.main([], [str(tmp_path / "vulnerable")]) == 1
