"""Uploads an object while it is written; it appears when the last part is complete."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any, BinaryIO, cast

from botocore.exceptions import ClientError

from momkd_ray.storage.s3_client import client, pool
from momkd_ray.storage.s3_download import S3Object
from momkd_ray.storage.s3_retry import code_of, with_retries

PART_BYTES = 16 * 2**20  # S3 accepts at most 10,000 parts, each but the last of at least 5 MiB
ABORT_RETRY_S = 5.0

_TOKEN = "momkd-ray-upload"


@contextmanager
def upload_object(target: S3Object) -> Iterator[BinaryIO]:
    """Opens a stream whose object appears when the block ends without an exception.

    A killed process leaves no object, only parts that the bucket's lifecycle rule for incomplete multipart uploads
    removes.
    """
    upload = _Upload(target)
    try:
        yield cast(BinaryIO, upload)
        upload.complete()
    except BaseException:
        upload.abort()
        raise


class _Upload(io.RawIOBase):
    """Stream of one upload: at most one part is being sent while the next is filled."""

    def __init__(self, target: S3Object) -> None:
        self._location, self._object = target.location, target.object()
        self._buffer = bytearray()
        self._length = 0
        self._upload_id = ""  # of the multipart upload; an object of one part needs none
        self._token = uuid.uuid4().hex
        self._etags: list[str] = []
        self._pending: Future[str] | None = None
        self._cancelled = Event()

    def writable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self._length

    def write(self, content: Any) -> int:
        """Writes all of the content; returns its number of bytes."""
        view = memoryview(content).cast("B")
        taken = 0
        while taken < len(view):
            piece = view[taken : taken + PART_BYTES - len(self._buffer)]
            self._buffer += piece
            taken += len(piece)
            if len(self._buffer) >= PART_BYTES:
                self._send_part()
        self._length += taken
        return taken

    def complete(self) -> None:
        """Finishes the upload, so that the object appears."""
        if not self._upload_id:
            self._with_retries(lambda: client().put_object(**self._object, Body=self._buffer))
            return
        if self._buffer:
            self._send_part()
        self._wait_for_part()
        self._with_retries(self._complete_multipart)

    def abort(self) -> None:
        """Removes the parts that were sent, if S3 can be reached."""
        self._cancelled.set()
        with suppress(Exception):
            self._wait_for_part()
        if self._upload_id:
            with suppress(Exception):
                with_retries(
                    "abort the upload of",
                    self._location,
                    lambda: client().abort_multipart_upload(**self._object, UploadId=self._upload_id),
                    max_seconds=ABORT_RETRY_S,
                )

    def _with_retries(self, request: Any) -> Any:
        return with_retries("write", self._location, request, cancelled=self._cancelled)

    def _send_part(self) -> None:
        if not self._upload_id:
            metadata = {_TOKEN: self._token}
            created = self._with_retries(lambda: client().create_multipart_upload(**self._object, Metadata=metadata))
            self._upload_id = created["UploadId"]
        self._wait_for_part()
        number, part = len(self._etags) + 1, self._buffer
        self._buffer = bytearray()
        self._pending = pool().submit(self._with_retries, lambda: self._put_part(number, part))

    def _put_part(self, number: int, part: bytearray) -> str:
        answer = client().upload_part(**self._object, UploadId=self._upload_id, PartNumber=number, Body=part)
        etag: str = answer["ETag"]
        return etag

    def _wait_for_part(self) -> None:
        """Waits for the part that is being sent."""
        pending, self._pending = self._pending, None
        if pending is not None:
            self._etags.append(pending.result())

    def _complete_multipart(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, start=1)]
        try:
            client().complete_multipart_upload(
                **self._object, UploadId=self._upload_id, MultipartUpload={"Parts": parts}
            )
        except ClientError as error:
            if code_of(error) != "NoSuchUpload" or not self._is_complete():
                raise

    def _is_complete(self) -> bool:
        """Tells whether an earlier request, whose answer was lost, completed this upload."""
        metadata: dict[str, str] = client().head_object(**self._object)["Metadata"]
        return metadata.get(_TOKEN) == self._token
