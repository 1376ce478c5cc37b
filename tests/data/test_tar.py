"""The tar reader beside Python's tarfile and GNU tar."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile

import numpy as np
import pytest

from orchestrator.data import tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


class Trickle:
    """A stream that gives what it has, as sockets do."""

    def __init__(self, data, most=1000):
        self._data, self._most = io.BytesIO(data), most

    def read(self, size):
        return self._data.read(min(size, self._most))


def archive(members, format=tarfile.PAX_FORMAT, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=format) as out:
        for header, data in members:
            header = tarfile.TarInfo(header) if isinstance(header, str) else header
            header.size = len(data)
            out.addfile(header, io.BytesIO(data))
    return stream.getvalue()


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|*") as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]


def some_members(longest):
    sizes = [0, 1, 511, 512, 513, 5000, (1 << 18) - 512, 1 << 18, (1 << 18) + 1, 700_000]
    rng = np.random.default_rng(0)
    names = [f"{i:02d}.jpg" for i in range(len(sizes) - 3)]
    names += ["a folder/of its own/00.txt", "d" * (longest // 2) + "/" + "n" * (longest // 2 - 6) + ".txt", "é世.txt"]
    folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "00.jpg"
    files = [(name, rng.bytes(size)) for name, size in zip(names, sizes, strict=True)]
    return [(folder, b""), *files[:4], (link, b""), *files[4:]]


@pytest.mark.parametrize("compression", ["", ":gz", ":bz2", ":xz"])
@pytest.mark.parametrize("format", FORMATS)
def test_files_are_those_that_tarfile_reads(format, compression):
    data = archive(some_members(180 if format == "ustar" else 700), FORMATS[format], "w" + compression)
    found = list(tar.files(io.BytesIO(data)))
    assert len(found) == 10 and found == by_tarfile(data)
    assert list(tar.files(Trickle(data))) == found


@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_files_are_those_that_gnu_tar_wrote(tmp_path, format):
    names = ["00.jpg", "folder/01.jpg", *([] if format == "v7" else ["folder/" + "n" * 90 + "/02.jpg"])]
    for place, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(os.urandom(700 * place))
    os.link(tmp_path / "in" / "folder/01.jpg", tmp_path / "in" / "folder/link.jpg")
    command = ["tar", "--format", format, "--sort=name", "-cf", tmp_path / "a.tar", "-C", tmp_path / "in", "."]
    subprocess.run(command, check=True)
    data = (tmp_path / "a.tar").read_bytes()
    assert list(tar.files(io.BytesIO(data))) == by_tarfile(data)
    assert len(by_tarfile(data)) == len(names)


def test_a_global_header_is_of_all_files():
    with_global = io.BytesIO()
    with tarfile.open(
        fileobj=with_global, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "of git"}
    ) as out:
        out.addfile(tarfile.TarInfo("a.txt"))
    assert list(tar.files(io.BytesIO(with_global.getvalue()))) == [("a.txt", b"")]


def test_lzma_without_a_container_and_checksums_of_signed_bytes():
    data = bytearray(archive([("é.txt", b"a")], tarfile.USTAR_FORMAT))
    assert list(tar.files(io.BytesIO(lzma.compress(data, format=lzma.FORMAT_ALONE)))) == [("é.txt", b"a")]
    signed = 256 + sum(np.frombuffer(bytes(data[:148] + data[156:512]), np.int8).tolist())
    assert signed != int(data[148:154], 8)
    data[148:156] = b"%06o\0 " % signed
    assert list(tar.files(io.BytesIO(data))) == by_tarfile(data) == [("é.txt", b"a")]


def test_compressed_parts_one_after_the_other_are_one_archive():
    data = archive([("a.txt", b"a" * 3000), ("b.txt", b"b")])
    assert list(tar.files(Trickle(gzip.compress(data[:1700]) + gzip.compress(data[1700:])))) == by_tarfile(data)


def test_wherever_it_is_cut_the_whole_files_before_are_kept():
    data = archive([("a.jpg", b"a" * 700), ("é.txt", b"b" * 512), ("c.jpg", b"")])
    with tarfile.open(fileobj=io.BytesIO(data)) as whole:
        ends = [m.offset_data + m.size for m in whole.getmembers()]
        last = ends[-1]
    # After a file and its padding an archive may end: some writers leave the end mark out.
    quiet = {-(-end // 512) * 512 for end in ends} | set(range(last, len(data) + 1, 512))
    for length in range(len(data) + 1):
        found, damage = [], ""
        try:
            for name, _ in tar.files(Trickle(data[:length])):
                found.append(name)
        except tar.DamagedTar as error:
            damage = str(error)
        assert found == [n for n, end in zip(["a.jpg", "é.txt", "c.jpg"], ends, strict=True) if end <= length], length
        assert (not damage) == (length in quiet or length >= last + 512), length
        assert not damage or str(length) in damage or length == 0


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_bytes_that_end_early_or_are_broken_are_damage(compress):
    data = compress(archive([("a.jpg", os.urandom(5000)), ("b.jpg", os.urandom(5000))]))
    for cut in (len(data) // 2, 30):
        with pytest.raises(tar.DamagedTar):
            list(tar.files(io.BytesIO(data[:cut])))
    broken = bytearray(data)
    broken[len(data) // 2] ^= 255
    with pytest.raises(tar.DamagedTar):
        list(tar.files(io.BytesIO(bytes(broken))))


def test_a_damaged_header_is_an_error_wherever_it_stands():
    data = archive([("a.jpg", b"a" * 700), ("b.jpg", b"b"), ("c.jpg", b"c")])
    header = data.index(b"b.jpg")
    for place in (0, 130, 150, 300):
        broken = bytearray(data)
        broken[header + place] ^= 1
        files = tar.files(io.BytesIO(bytes(broken)))
        assert next(files)[0] == "a.jpg"
        with pytest.raises(tar.DamagedTar, match=f"header before byte {header + 512} is damaged"):
            next(files)
    for other in (b"", b"no archive", os.urandom(2000), b"\xff\xd8\xff" + b"\0" * 600):
        with pytest.raises(tar.DamagedTar):
            list(tar.files(io.BytesIO(other)))


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sizes_beyond_octal_digits(format):
    header = tarfile.TarInfo("large.jpg")
    header.size = 9 << 30
    start = header.tobuf(FORMATS[format])
    with pytest.raises(tar.DamagedTar, match=f" {(9 << 30) - 5} bytes before the end of a file"):
        list(tar.files(io.BytesIO(start + b"12345")))


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"], ["--format=posix", "--sparse-version=0.0"]])
def test_a_sparse_file_is_refused_by_name(tmp_path, options):
    with open(tmp_path / "holes.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    command = ["tar", *options, "-S", "--hole-detection=raw", "-cf", tmp_path / "a.tar", "-C", tmp_path, "holes.jpg"]
    subprocess.run(command, check=True)
    with pytest.raises(tar.DamagedTar, match=r"holes\.jpg.*sparse file"):
        list(tar.files(io.BytesIO((tmp_path / "a.tar").read_bytes())))
