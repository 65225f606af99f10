"""The configuration's section of the bag store, and of its cache on the nodes' disks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator

from momkd_ray.config.dotted_keys import Section
from momkd_ray.config.values import Location, Positive, Share, resolve_location

LocalPath = Annotated[str, AfterValidator(resolve_location), WithJsonSchema({"type": "string", "format": "path"})]


class CacheConfig(Section):
    """The cache of bags on each node's own disk. No key changes a result."""

    dir: LocalPath | None = Field(
        default=None,
        description="The folder of the cache, a path on a disk of every node; any file in it may be deleted at any "
        "time. By default `/var/tmp/momkd-ray-<user id>/bags`, for a store on S3 or on a file system of the network.",
    )
    gb: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="The size of the cache on a node, in GB; 0 for none. By default half of what the disk has free.",
    )

    @field_validator("dir")
    @classmethod
    def _is_a_path(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            raise ValueError(f"{value} is not on a disk of the node: give a path")
        return value


class StoreConfig(Section):
    """The bag store: Parquet files, one row per bag."""

    uri: Location | None = Field(default=None, description="The folder of the bag store; by default `<run.dir>/bags`.")
    dtype: Literal["float16", "float32"] = Field(
        default="float16",
        description="The precision of the stored features. The default is the precision in which most encoders "
        "compute, at half the bytes.",
    )
    neighbors: Positive = Field(
        default=8,
        description="The number k of nearest neighbours of each patch in the graph. The default is the paper's.",
    )
    part_mb: Positive = Field(
        default=128,
        description="The size of a Parquet file of the store, in MiB. The default is Ray Data's own target block size.",
    )
    memory_share: Share = Field(
        default=0.3,
        description="The share of Ray's object store that bags may fill on the nodes that train; if they need more, "
        "they are read from the bag store. The default is ours: Ray Data and Ray Train need the rest.",
    )
    reader: Literal["auto", "ray_data", "direct"] = Field(
        default="auto",
        description="Who reads bags that are not in the object store: `ray_data`, whose tasks run on any machine with "
        "free CPUs, or `direct`, each worker by itself. The default is Ray Data on several machines and "
        "direct reading on one; it is by design, not by measurement.",
    )
    cache: CacheConfig = Field(default_factory=CacheConfig, description="The cache of bags on each node's own disk.")
