import os
import zipfile

import pytest

from mmkt.data.media import MediaError, _open, fetch, size


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.bin").write_bytes(b"file")
    with zipfile.ZipFile(tmp_path / "pack.zip", "w", zipfile.ZIP_DEFLATED) as pack:
        for i in range(20):
            pack.writestr(f"in/{i}.bin", bytes([i]) * 1000)
        pack.writestr("../evil.bin", b"evil")
    return tmp_path


def test_every_form_of_cell(root):
    for cell in (
        b"file",
        {"bytes": b"file", "path": "gone"},
        {"bytes": None, "path": "sub/a.bin"},
        "sub/a.bin",
        str(root / "sub/a.bin"),
    ):
        assert fetch(cell, root) == b"file"
        assert size(cell, root) == 4
    assert fetch("pack.zip::in/7.bin", root) == bytes([7]) * 1000
    assert size("pack.zip::in/7.bin", root) == 1000
    assert size(["sub/a.bin", b"12", None], root) == 6


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("gone.bin", "cannot read the file .*gone.bin: No such file"),
        ("sub", "cannot read the file .*sub: "),
        ("gone.zip::a", "gone.zip"),
        ("pack.zip::in/99.bin", "pack.zip has no member 'in/99.bin'"),
        ("pack.zip::../evil.bin", "must stay inside"),
        ("pack.zip::in/../../evil.bin", "must stay inside"),
        ("pack.zip::..\\evil.bin", "must stay inside"),
        ("pack.zip::/etc/passwd", "must stay inside"),
        ("pack.zip::C:/x", "must stay inside"),
        ("sub/a.bin::x", "cannot read sub/a.bin::x"),
        (3.5, "not float '3.5'"),
        ({"array": []}, r"has 'bytes' or 'path', not \['array'\]"),
        ({"bytes": None, "path": None}, "not NoneType"),
    ],
)
def test_refused(root, cell, message):
    for access in (fetch, size):
        if access is size and cell == "sub":
            continue  # a folder has a size
        with pytest.raises(MediaError, match=message):
            access(cell, root)


def test_damaged_member_is_refused(root):
    data = bytearray((root / "pack.zip").read_bytes())
    data[40] ^= 0xFF  # inside the first member's data
    (root / "bad.zip").write_bytes(bytes(data))
    with pytest.raises(MediaError, match=r"bad\.zip::in/0.bin"):
        fetch("bad.zip::in/0.bin", root)
    assert fetch("bad.zip::in/1.bin", root) == bytes([1]) * 1000


def test_zip_rewritten_and_many_zips(root):
    for i in range(12):  # more than are kept open
        with zipfile.ZipFile(root / f"{i}.zip", "w") as pack:
            pack.writestr("x", str(i))
    assert [fetch(f"{i % 12}.zip::x", root) for i in range(24)] == [str(i % 12).encode() for i in range(24)]
    with zipfile.ZipFile(root / "3.zip", "w") as pack:
        pack.writestr("x", "new")
    os.utime(root / "3.zip", ns=(1, 1))
    assert fetch("3.zip::x", root) == b"new"


def test_a_forked_process_opens_its_own_handle(root, monkeypatch):
    parent, _ = _open("pack.zip::in/0.bin", root)
    assert _open("pack.zip::in/1.bin", root)[0] is parent
    monkeypatch.setattr(os, "getpid", lambda: -1)  # what a fork changes
    child, _ = _open("pack.zip::in/0.bin", root)
    assert child is not parent
    assert child.read("in/3.bin") == parent.read("in/3.bin")
