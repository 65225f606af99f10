"""Parts that no manifest lists and what killed writers left are removed, and never what a living process uses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from support.bags import EXACT, relisted, stored, write_h5
from support.s3 import PART, S3Server

from momkd_ray import storage
from momkd_ray.bags.store import BagStore
from momkd_ray.bags.unused import clean, unused_sentence, using
from momkd_ray.errors import RunError
from momkd_ray.storage.lease import lease


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "shared")
    server: S3Server = request.getfixturevalue("s3_server")
    return f"{server.uri}/shared"


def replaced(slides: pd.DataFrame, place: str) -> list[str]:
    """Stores all slides, and then the first ones from other files; returns the parts that are not listed any more."""
    stored(slides, place, EXACT)
    before = {entry["part"] for entry in BagStore.open(place).entries.values()}
    for path in slides["path"]:
        write_h5(Path(path), n=10, seed=100 + list(slides["path"]).index(path))
    stored(relisted(slides), place, EXACT)
    return sorted(before - {entry["part"] for entry in BagStore.open(place).entries.values()})


def killed_writer(place: str) -> str:
    """A process that was killed while it wrote into the store."""
    code = (
        "import os, signal, sys\n"
        "from momkd_ray import storage\n"
        "from momkd_ray.storage import s3_upload\n"
        f"s3_upload.PART_BYTES = {PART}\n"
        "with storage.atomic_writer(sys.argv[1]) as stream:\n"
        f"    stream.write(bytes({3 * PART + 5}))\n"
        "    stream.flush()\n"
        "    getattr(stream, '_wait_for_part', lambda: None)()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, f"{place}/part-killed.parquet"], timeout=60)
    assert done.returncode == -9
    return "part-killed.parquet"


def test_what_no_manifest_lists_is_removed_and_every_bag_stays(place: str, slides: pd.DataFrame) -> None:
    old = replaced(slides, place)
    assert old
    killed_writer(place)
    size = sum(file.size for file in storage.list_files(place) if file.name in old)
    assert f"{len(old)} part" in unused_sentence(place)
    removed = clean(place)
    assert [file.name for file in removed.parts] == old
    assert sum(file.size for file in removed.parts) == size
    assert len(removed.temporary) == 1
    assert removed.temporary[0].size >= 3 * PART
    told = removed.sentence(place)
    sizes = r"\d+ parts? \([\d.]+ \w+\) of no use any more and 1 file \([\d.]+ kB\) that killed commands"
    assert re.search(sizes, told), told
    assert not unused_sentence(place)
    store = BagStore.open(place)
    for slide_id in slides["slide_id"]:
        assert store.read(slide_id).n_patches == 10
    assert clean(place).sentence(place) == ""


def test_nothing_is_removed_under_a_living_process(place: str, slides: pd.DataFrame) -> None:
    old = replaced(slides, place)
    said: list[str] = []
    with using(place, said.append):
        assert not unused_sentence(place) or old
        with pytest.raises(RunError, match=r"is in use by process \d+ .*: wait until that command has ended"):
            clean(place)
        killed_writer(place)
        with using(place, said.append):  # two at a time, of which neither removes what the other may be writing
            assert not said
        assert set(old) <= set(storage.list_names(place))
    with using(place, said.append):  # alone: what is left is of a killed process
        (told,) = said
        assert "1 file (" in told
        assert "part" not in told.replace("part-", "")
    assert set(old) <= set(storage.list_names(place))
    clean(place)
    assert not set(old) & set(storage.list_names(place))


def test_a_command_waits_while_a_store_is_cleaned(tmp_path: Path) -> None:
    import threading

    uri, order = str(tmp_path), list[str]()
    entered = threading.Event()

    def cleaning() -> None:
        with lease(f"{uri}/.lease.json", uri):
            entered.set()
            threading.Event().wait(1.5)
            order.append("cleaned")

    thread = threading.Thread(target=cleaning)
    thread.start()
    entered.wait()
    with using(uri, lambda sentence: None):
        order.append("used")
    thread.join()
    assert order == ["cleaned", "used"]


def test_a_store_that_cannot_be_written_to_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from momkd_ray.bags import unused
    from momkd_ray.errors import InputError

    def refused(*arguments: object, **options: object) -> None:
        raise InputError("cannot write: read-only file system")

    monkeypatch.setattr(unused, "lease", refused)
    with using(str(tmp_path), print):
        pass
