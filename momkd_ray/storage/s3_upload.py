"""Writing an object as it comes: parts are sent while it grows, and it appears when the last one is in."""

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
from momkd_ray.storage.s3_download import Named
from momkd_ray.storage.s3_retry import code_of, with_retries

PART_BYTES = 16 * 2**20  # S3 takes 10,000 of them, and none but the last below 5 MiB
ABORT_PATIENCE_S = 5.0

_TOKEN = "momkd-ray-upload"


@contextmanager
def uploading(place: Named) -> Iterator[BinaryIO]:
    """A stream whose object appears when the block ends well.

    A process that is killed leaves nothing to be seen, only parts that the bucket's lifecycle rule for incomplete
    multipart uploads removes.
    """
    upload = _Upload(place)
    try:
        yield cast(BinaryIO, upload)
        upload.complete()
    except BaseException:
        upload.abandon()
        raise


class _Upload(io.RawIOBase):
    """One object on its way: at most one part is being sent while the next one is filled."""

    def __init__(self, place: Named) -> None:
        self._place, self._object = place, place.object()
        self._filling = bytearray()
        self._length = 0
        self._id = ""  # of the multipart upload; a short object needs none
        self._token = uuid.uuid4().hex
        self._etags: list[str] = []
        self._sending: Future[str] | None = None
        self._given_up = Event()

    def writable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self._length

    def write(self, content: Any) -> int:
        """Take all of the content."""
        view = memoryview(content).cast("B")
        taken = 0
        while taken < len(view):
            piece = view[taken : taken + PART_BYTES - len(self._filling)]
            self._filling += piece
            taken += len(piece)
            if len(self._filling) >= PART_BYTES:
                self._send()
        self._length += taken
        return taken

    def complete(self) -> None:
        """Let the object appear."""
        if not self._id:
            self._patiently(lambda: client().put_object(**self._object, Body=self._filling))
            return
        if self._filling:
            self._send()
        self._sent()
        self._patiently(self._join_parts)

    def abandon(self) -> None:
        """Drop what was sent, as far as S3 can be reached."""
        self._given_up.set()
        with suppress(Exception):
            self._sent()
        if self._id:
            with suppress(Exception):
                with_retries(
                    "abandon",
                    self._place.location,
                    lambda: client().abort_multipart_upload(**self._object, UploadId=self._id),
                    at_most_s=ABORT_PATIENCE_S,
                )

    def _patiently(self, request: Any) -> Any:
        return with_retries("write", self._place.location, request, given_up=self._given_up)

    def _send(self) -> None:
        if not self._id:
            metadata = {_TOKEN: self._token}
            begun = self._patiently(lambda: client().create_multipart_upload(**self._object, Metadata=metadata))
            self._id = begun["UploadId"]
        self._sent()
        number, part = len(self._etags) + 1, self._filling
        self._filling = bytearray()
        self._sending = pool().submit(self._patiently, lambda: self._put_part(number, part))

    def _put_part(self, number: int, part: bytearray) -> str:
        answer = client().upload_part(**self._object, UploadId=self._id, PartNumber=number, Body=part)
        etag: str = answer["ETag"]
        return etag

    def _sent(self) -> None:
        """Wait for the part on its way."""
        sending, self._sending = self._sending, None
        if sending is not None:
            self._etags.append(sending.result())

    def _join_parts(self) -> None:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(self._etags, start=1)]
        try:
            client().complete_multipart_upload(**self._object, UploadId=self._id, MultipartUpload={"Parts": parts})
        except ClientError as error:
            if code_of(error) != "NoSuchUpload" or not self._is_there():
                raise

    def _is_there(self) -> bool:
        """Whether this upload was completed already, by a request whose answer was lost."""
        metadata: dict[str, str] = client().head_object(**self._object)["Metadata"]
        return metadata.get(_TOKEN) == self._token
