"""Objects of S3 as files, and what they share up to a slash as folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from typing import Any, BinaryIO, cast

from momkd_ray.errors import InputError
from momkd_ray.storage.backend import FileInfo, Kind
from momkd_ray.storage.s3_client import client
from momkd_ray.storage.s3_download import RangeRead
from momkd_ray.storage.s3_file import ObjectFile
from momkd_ray.storage.s3_retry import with_retries
from momkd_ray.storage.s3_upload import uploading

_OPTIONS = re.compile(r"\?(.*&)?(endpoint_override|scheme|region)=")


class S3Backend:
    """An object of a bucket or the objects below it. Keys are taken literally: `%20` is no space."""

    def __init__(self, location: str) -> None:
        if _OPTIONS.search(location):
            raise InputError(f"{location} has options after '?': give the endpoint in AWS_ENDPOINT_URL instead")
        self.location = location
        self.bucket, _, self.key = location.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise InputError(f"{location} names no bucket; write s3://bucket/key")

    def object(self) -> dict[str, str]:
        """Bucket and key of a file.

        Raises:
            InputError: it can only be a folder.
        """
        if not self.key or self.key.endswith("/"):
            raise InputError(f"{self.location} is a {'folder' if self.key else 'bucket'}, not a file: add a name to it")
        return {"Bucket": self.bucket, "Key": self.key}

    def kind(self) -> Kind | None:
        """What is there."""
        if self.stat() is not None:
            return "file"
        # also tells a bucket that is not there from an object that is not: the answer to `stat` does not
        page = self._page({"MaxKeys": 1})
        return "folder" if page.get("KeyCount") or not self.key else None

    def stat(self) -> FileInfo | None:
        """The object; None where there is none."""
        if not self.key or self.key.endswith("/"):
            return None
        with suppress(FileNotFoundError):
            found = with_retries("look up", self.location, lambda: client().head_object(**self.object()))
            return _info(self.key.rpartition("/")[2], found["ContentLength"], found["ETag"])
        return None

    def list_files(self) -> list[FileInfo]:
        """The objects directly below, in any order."""
        prefix = self._prefix()
        return [
            _info(item["Key"][len(prefix) :], item["Size"], item["ETag"])
            for page in self._pages()
            for item in page.get("Contents", [])
            if item["Key"] != prefix  # an empty object that stands for the folder itself
        ]

    def list_names(self) -> set[str]:
        """The names of objects and folders directly below."""
        prefix, names = self._prefix(), set()
        for page in self._pages():
            names |= {item["Key"][len(prefix) :] for item in page.get("Contents", [])}
            names |= {item["Prefix"][len(prefix) : -1] for item in page.get("CommonPrefixes", [])}
        return names - {""}

    def _prefix(self) -> str:
        return f"{self.key.rstrip('/')}/" if self.key else ""

    def _pages(self) -> Iterator[dict[str, Any]]:
        page = self._page({})
        yield page
        while page.get("IsTruncated"):
            page = self._page({"ContinuationToken": page["NextContinuationToken"]})
            yield page

    def _page(self, options: dict[str, Any]) -> dict[str, Any]:
        what = {"Bucket": self.bucket, "Prefix": self._prefix(), "Delimiter": "/", **options}
        page: dict[str, Any] = with_retries("list", self.location, lambda: client().list_objects_v2(**what))
        return page

    def delete(self) -> None:
        """Remove the object."""
        with suppress(FileNotFoundError):  # Amazon does not tell, others do
            with_retries("remove", self.location, lambda: client().delete_object(**self.object()))

    def atomic_writer(self) -> AbstractContextManager[BinaryIO]:
        """A stream whose object appears when the block ends well."""
        return uploading(self)

    def open_file(self) -> BinaryIO:
        """The object as a file."""
        return cast(BinaryIO, ObjectFile(self))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill a view."""
        RangeRead(self, offset, view).read()

    def read_buffer(self) -> memoryview:
        """All of the object."""
        return RangeRead(self).read()


def _info(name: str, size: int, etag: str) -> FileInfo:
    # not the time of change: listings have it to the millisecond, the object itself only to the second
    return FileInfo(name, size, f"{size}-{etag.strip(chr(34))}")
