"""S3 objects as files, and common prefixes of keys as folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from momkd_ray.errors import InputError
from momkd_ray.storage.backend import LEASE, FileInfo, Kind
from momkd_ray.storage.s3_client import client
from momkd_ray.storage.s3_download import RangeRead
from momkd_ray.storage.s3_file import ObjectFile
from momkd_ray.storage.s3_retry import code_of, status_of, with_retries
from momkd_ray.storage.s3_upload import upload_object

_OPTIONS = re.compile(r"\?(.*&)?(endpoint_override|scheme|region)=")


class S3Backend:
    """An object of a bucket, or the objects under a prefix. Keys are literal: `%20` is not a space."""

    def __init__(self, location: str) -> None:
        if _OPTIONS.search(location):
            raise InputError(f"{location} has options after '?'; set the endpoint in AWS_ENDPOINT_URL instead")
        self.location = location
        self.bucket, _, self.key = location.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise InputError(f"{location} names no bucket; write s3://bucket/key")

    def object(self) -> dict[str, str]:
        """Returns `Bucket` and `Key` of the object.

        Raises:
            InputError: the location can only be a folder.
        """
        if not self.key or self.key.endswith("/"):
            raise InputError(
                f"{self.location} is a {'folder' if self.key else 'bucket'}, not a file; add a file name to it"
            )
        return {"Bucket": self.bucket, "Key": self.key}

    def kind(self) -> Kind | None:
        """Tells whether it is a file or a folder."""
        if self.stat() is not None:
            return "file"
        # unlike `stat`, listing distinguishes a missing bucket from a missing object
        page = self._page({"MaxKeys": 1})
        return "folder" if page.get("KeyCount") or not self.key else None

    def stat(self) -> FileInfo | None:
        """Returns size and stamp of the object; None if there is none."""
        if not self.key or self.key.endswith("/"):
            return None
        with suppress(FileNotFoundError):
            answer = with_retries("look up", self.location, lambda: client().head_object(**self.object()))
            return _info(self.key.rpartition("/")[2], answer["ContentLength"], answer["ETag"])
        return None

    def list_files(self) -> list[FileInfo]:
        """Lists the objects directly under the prefix, in any order."""
        prefix = self._prefix()
        return [
            _info(item["Key"][len(prefix) :], item["Size"], item["ETag"])
            for page in self._pages()
            for item in page.get("Contents", [])
            if item["Key"] != prefix  # an empty object that marks the folder itself
        ]

    def list_names(self) -> set[str]:
        """Lists the names of objects and folders directly under the prefix."""
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
        request = {"Bucket": self.bucket, "Prefix": self._prefix(), "Delimiter": "/", **options}
        page: dict[str, Any] = with_retries("list", self.location, lambda: client().list_objects_v2(**request))
        return page

    def delete(self) -> None:
        """Removes the object."""
        with suppress(FileNotFoundError):  # other services than Amazon report it
            with_retries("remove", self.location, lambda: client().delete_object(**self.object()))

    def remove_temporary(self, below: bool) -> list[FileInfo]:
        """Aborts the uploads that killed writers have not completed, and returns what they had sent."""
        prefix, left = self._prefix(), []
        for upload in self._uploads():
            name, request = upload["Key"][len(prefix) :], {"Bucket": self.bucket, "Key": upload["Key"]}
            request["UploadId"] = upload["UploadId"]
            if ("/" in name and not below) or LEASE in name:
                continue
            with suppress(FileNotFoundError):  # completed or aborted since it was listed
                parts = with_retries("list", self.location, partial(_parts, request))
                with_retries("remove", self.location, partial(client().abort_multipart_upload, **request))
                left.append(FileInfo(name, sum(part["Size"] for part in parts), upload["UploadId"]))
        return left

    def _uploads(self) -> list[dict[str, Any]]:
        """Lists the uploads under the prefix that are not complete."""
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._prefix()}
        uploads: list[dict[str, Any]] = []
        while True:
            page = with_retries("list", self.location, partial(client().list_multipart_uploads, **request))
            uploads += page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return uploads
            request |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def atomic_writer(self) -> AbstractContextManager[BinaryIO]:
        """Opens a stream whose object appears when the block ends without an exception."""
        return upload_object(self)

    def update(self, change: Callable[[bytes | None], bytes]) -> None:
        """Replaces the object on condition that it is still the one that was read; else reads it again."""
        while True:
            etag, content = self._versioned_content()
            body = change(content)
            condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}

            if with_retries("write", self.location, partial(self._put_if, body, condition)):
                return

    def _put_if(self, body: bytes, condition: dict[str, str]) -> bool:
        """Writes the object; False if the condition does not hold."""
        try:
            client().put_object(**self.object(), Body=body, **condition)
        except ClientError as error:
            removed = "IfMatch" in condition and code_of(error) in ("NoSuchKey", "404")
            if removed or status_of(error) in (409, 412):
                return False
            raise
        return True

    def _versioned_content(self) -> tuple[str | None, bytes | None]:
        read = RangeRead(self)
        try:
            content = bytes(read.read())
        except FileNotFoundError:
            return None, None
        return read.etag or client().head_object(**self.object())["ETag"], content

    def open_file(self) -> BinaryIO:
        """Opens the object as a file."""
        return cast(BinaryIO, ObjectFile(self))

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills a view from `offset` on."""
        RangeRead(self, offset, view).read()

    def read_buffer(self) -> memoryview:
        """Reads the object into new memory."""
        return RangeRead(self).read()


def _parts(request: dict[str, str]) -> list[dict[str, Any]]:
    pages = client().get_paginator("list_parts").paginate(**request)
    return [part for page in pages for part in page.get("Parts", [])]


def _info(name: str, size: int, etag: str) -> FileInfo:
    # not the modification time: listings give it in milliseconds, the object itself in seconds
    return FileInfo(name, size, f"{size}-{etag.strip(chr(34))}")
