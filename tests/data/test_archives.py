"""Archives are not unpacked, whatever they are called; only the named formats are read."""

import gzip
import io
import tarfile
import zipfile

import pytest

from helpers import sums, write_jsonl
from tutelage.cli import main
from tutelage.data.prompts import read_prompts
from tutelage.errors import DataError

ROW = b'{"prompt": "What is 1 + 1?", "answer": "2"}\n'


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVES = {
    "zip": zipped("prompts.jsonl", ROW),
    "member outside": zipped("../canary", ROW),
    "bomb": zipped("prompts.jsonl", b"0" * 50_000_000),
    "tar": tarred("prompts.jsonl", ROW),
    "tar outside": tarred("../canary", ROW),
    "gzip": gzip.compress(ROW),
}


@pytest.mark.parametrize("content", ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_of_prompts_is_refused_under_every_name(tmp_path, content):
    folder = tmp_path / "in"
    folder.mkdir()
    archives = (".zip", ".tar", ".tar.gz", ".tgz", ".gz", "")
    for ending in (*archives, ".jsonl", ".json", ".csv", ".parquet"):
        path = folder / f"prompts{ending}"
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_prompts(str(path))
        path.unlink()
    assert list(tmp_path.rglob("*")) == [folder]


def test_an_archive_is_no_model_no_config_and_no_run(tmp_path, gpt2_pair, capsys):
    path = tmp_path / "thing.zip"
    path.write_bytes(ARCHIVES["member outside"])
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(4))
    assert main(["eval", str(path), "--prompts", str(prompts), "--verifier", "numeric"]) == 2
    assert main(["plan", "-c", str(path)]) == 2
    assert main(["explain", str(path)]) == 2
    assert main(["report", str(path)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"thing.zip", "prompts.jsonl"}
